"""A TIFF directory, in TIFF files and EXIF: fields, and the offsets of their values."""

from typing import NamedTuple

from must.base.errors import UserError
from must.data.image.headers.base import MAX_SEGMENTS, Steps, number

STARTS = (b"II\x2a\0", b"II\x2b\0", b"II\0\x2a", b"MM\0\x2a", b"MM\x2a\0")  # those that Pillow accepts, except MM\0\x2b
SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
BYTES = (1, 2, 6, 7)  # types that stay bytes; Pillow converts any other to a tuple of numbers


class Field(NamedTuple):
    kind: int
    length: int  # number of values
    offset: int  # of the first value


class Directory:
    """The first directory of a file, or the one at `at`. `bytes`: of all values outside the directory itself.

    Raises ValueError: too long, or the first directory has a field twice, which decoders treat differently.
    """

    def __init__(self, data: bytes, steps: Steps, parts: str = "strips or tiles", at: int = 0) -> None:
        self.data, self.steps, self.order = data, steps, "little" if data[:1] == b"I" else "big"
        wide = 8 if data[2:4] == b"\x2b\0" else 4
        short, entry = (2, 12) if wide == 4 else (8, 20)
        start = at or number(data, wide, wide, self.order)
        self.entries = number(data, start, short, self.order)
        if self.entries > MAX_SEGMENTS:
            raise UserError(f"more than {MAX_SEGMENTS} {parts}")
        self.fields: dict[int, Field] = {}
        self.bytes = 0
        for offset in range(start + short, min(start + short + self.entries * entry, len(data)), entry):
            steps.take()
            tag, kind = number(data, offset, 2, self.order), number(data, offset + 2, 2, self.order)
            count = number(data, offset + 4, wide, self.order)
            size = SIZES.get(kind, 0) * count
            if count > MAX_SEGMENTS and (kind not in BYTES or tag in (273, 279, 324, 325)):
                raise UserError(f"more than {MAX_SEGMENTS} {parts}")
            if tag in self.fields and at:
                continue  # as Pillow does
            if tag in self.fields:
                raise UserError(f"its directory has the field {tag} twice")
            value_offset = offset + 4 + wide
            if size > wide:
                value_offset, self.bytes = number(data, value_offset, wide, self.order), self.bytes + size
            self.fields[tag] = Field(kind, count, value_offset)

    def values(self, tag: int) -> list[int]:
        """The integers of a field; [] if the field is missing or of another type."""
        kind, count, offset = self.fields.get(tag, Field(0, 0, 0))
        size = SIZES.get(kind, 0)
        if kind not in (1, 3, 4, 6, 8, 9, 13, 16, 17, 18):
            return []
        count = min(count, max(0, len(self.data) - offset) // size)
        self.steps.take(count)
        return [number(self.data, offset + size * n, size, self.order) for n in range(count)]

    def value(self, tag: int, otherwise: int = 0) -> int:
        """The largest of a field's numbers."""
        return max(self.values(tag), default=otherwise)


def directory_refusal(exif: bytes, steps: Steps | None = None) -> str:
    """Why this EXIF must not be parsed; "" if it may be."""
    try:
        directory = Directory(exif.removeprefix(b"Exif\0\0"), steps or Steps(), "values in a field of its metadata")
    except ValueError as error:
        return str(error)
    return "its metadata point at the same bytes many times" if directory.bytes > 2 * len(exif) + 1000 else ""
