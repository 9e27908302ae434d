"""What people are asked: pictures, and the class numbers they are asked about. A file in the folder of answers, which
is a function of the model, the images and a seed, and is written once."""

import hashlib
import json
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from typing import Any, ClassVar, Self

from must.base import storage
from must.base.errors import UserError
from must.base.names import SHA256, of_form
from must.base.parameters import require

FORMAT = 1
MOST = 2_000  # pictures: more than anybody answers


@dataclass(frozen=True)
class Picture:
    """`number`: in the split; `chance`: its weight among all that could be asked about; `classes`: numbers of the
    candidates' classes; `alike`: numbers of the pictures that look most like it."""

    number: int
    image: str
    sha256: str
    chance: float
    classes: tuple[int, ...]
    alike: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Questions:
    FILE: ClassVar[str]

    model_sha256: str  # of model.safetensors
    shards: str
    index_sha256: str
    split: str
    classes: list[str]
    pictures: list[Picture]
    format: int = FORMAT

    @property
    def candidates(self) -> int:
        """Class numbers that each picture has."""
        raise NotImplementedError

    @cached_property
    def at(self) -> dict[str, int]:
        """Class name -> number."""
        return {name: number for number, name in enumerate(self.classes)}

    def names(self, position: int) -> list[str]:
        """The candidates' class names for a picture, the first one's first, each once."""
        return [self.classes[number] for number in dict.fromkeys(self.pictures[position].classes)]

    def save(self, folder: str) -> None:
        storage.write_bytes(storage.join(folder, self.FILE), json.dumps(asdict(self), separators=(",", ":")).encode())

    @classmethod
    def load(cls, folder: str, flag: str = "--answers") -> Self:
        """Raises ValueError: there are none, they are damaged, or of another version."""
        uri = storage.join(folder, cls.FILE)
        damaged = f"{uri}: is damaged or of another version; delete it, and `must review` makes it again"
        try:
            return storage.read_object(uri, cls.parse, UserError(damaged))
        except (FileNotFoundError, NotADirectoryError):
            raise UserError(f"{flag} {folder}: no {cls.FILE} there; it is what `must review` writes") from None

    @classmethod
    def parse(cls, content: dict[str, Any]) -> Self:
        """Raises any of `storage.read_object`'s errors: not what `save` writes."""
        require(content.keys() == {f.name for f in fields(cls)} and content["format"] == FORMAT, "other fields")
        found = cls(**content | {"pictures": [parse_picture(entry) for entry in content["pictures"]]})
        found.check()
        return found

    def check(self) -> None:
        require(all(isinstance(name, str) for name in self.classes), "classes")
        for picture in self.pictures:
            numbers = picture.classes
            require(len(numbers) == self.candidates and max(numbers) < len(self.classes), "a picture's classes")


def parse_picture(entry: dict[str, Any]) -> Picture:
    picture = Picture(**entry | {"classes": tuple(entry["classes"]), "alike": tuple(entry["alike"])})
    of_form(SHA256, picture.sha256, "sha256")
    numbers = (picture.number, *picture.classes, *picture.alike)
    require(all(type(number) is int and number >= 0 for number in numbers), "a picture's numbers")
    require(isinstance(picture.image, str), "a picture's name")
    require(0 <= picture.chance <= 1, "a picture's chance")
    return picture


def fingerprint(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def whole_of(model: str) -> str:
    """The bundle with all of an adaptation, which training keeps beside one that has only a part of it, or none."""
    whole = storage.join(model, "adapted")
    return whole if storage.exists(storage.join(whole, "model.json")) else model
