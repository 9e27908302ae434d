"""The stage `must sort`: a folder for each class, with links to the images, or copies."""

import csv
import logging
import os
import shutil
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from must.base import storage
from must.base.errors import UserError
from must.base.parameters import require
from must.base.program import show_bar
from must.base.text import make_printable, parse_csv, pluralize, read_back
from must.config import SortConfig
from must.config.work import PREDICTIONS_FILE, Workspace
from must.data.reader import ShardReader

logger = logging.getLogger(__name__)


def sort(config: SortConfig) -> dict[str, int]:
    """Puts each image of the labels into OUTPUT/CLASS, under its name; returns the number of images of each class.

    An image is linked to the file on this machine that `must adapt` was given; without one its bytes are taken from the
    shards. Raises UserError: there is something at OUTPUT."""
    target = storage.local(config.output).absolute()
    is_free = not target.exists() or (target.is_dir() and not any(target.iterdir()))
    require(is_free, f"--output {config.output}: is there already; delete it, or choose another one")
    table = storage.join(config.labels, PREDICTIONS_FILE)
    try:
        labels = [(row["image"], row["class"]) for row in parse_csv(storage.read_bytes(table))]
    except (OSError, KeyError, AttributeError, ValueError, csv.Error):
        raise UserError(f"{table}: is missing or damaged; must refine writes it") from None
    photos, reader = find_photos(config.model), ShardReader(config.shards, config.split)
    work = Path(config.model).absolute().parent
    require(
        not photos or photos not in (target, *target.parents) or work in target.parents,
        f"--output {config.output}: is among the photographs, and would be read with them; choose another one",
    )
    names = reader.sources(range(len(reader)))
    packed = {read_back(name): number for number, name in enumerate(names)}
    folders = dict[str, str]()
    for label in dict.fromkeys(label for _, label in labels):
        folders[label] = make_unique(make_folder_name(label), folders.values())
    half = target.with_name(f".{target.name}.must-sort")
    with suppress(FileNotFoundError):
        shutil.rmtree(half)  # of a call that was killed
    for written, label in show_bar(labels, unit="img", desc="sort"):
        require(written in packed, f"{written}: is in the labels, and not in --shards {config.shards}")
        name = names[packed[written]]
        file = half / folders[label] / make_path(name)
        file.parent.mkdir(parents=True, exist_ok=True)
        if os.path.lexists(file):
            file = file.with_name(make_unique(file.name, [one.name for one in file.parent.iterdir()]))
        photo = photos / name if photos else None
        if photo and is_packed(photo, photos, reader.description(packed[written])["sha256"]):
            shutil.copyfile(photo, file) if config.copy else file.symlink_to(photo.absolute())
        else:
            file.write_bytes(reader.image(packed[written]))
    with suppress(FileNotFoundError):
        target.rmdir()
    half.rename(target)
    counts = Counter(label for _, label in labels)
    logger.info(make_printable(f"{pluralize(len(labels), 'image')} of {len(counts)} classes -> {target}"))
    return dict(counts)


def is_packed(photo: Path, photos: Path | None, sha256: str) -> bool:
    """Whether it is the picture with that sha256: another may have its name by now. Links do not lead elsewhere."""
    return photo.is_file() and photos in photo.resolve().parents and storage.compute_sha256(str(photo)) == sha256


def find_photos(model: str) -> Path | None:
    """The folder of images that `must adapt` was given; None if there is none on this machine."""
    photos = Workspace(str(Path(model).parent)).read_words().get("images")
    is_folder = isinstance(photos, str) and "://" not in photos and Path(photos).is_dir()
    return Path(str(photos)).resolve() if is_folder else None


def make_folder_name(label: str) -> str:
    """A class name as the name of a folder."""
    name = label.replace("/", "-").replace("\0", "")
    return f"-{name}" if name in ("", ".", "..") else name


def make_unique(name: str, taken: Iterable[str]) -> str:
    """The name, with a number if it is taken, also by one that differs in capitals alone."""
    known, stem, number = {one.casefold() for one in taken}, Path(name), 2
    while name.casefold() in known:
        name, number = f"{stem.stem}-{number}{stem.suffix}", number + 1
    return name


def make_path(name: str) -> str:
    """An image's name as a path below a folder."""
    parts = [part for part in name.replace("\0", "").split("/") if part not in ("", ".", "..")]
    return "/".join(parts) or "image"
