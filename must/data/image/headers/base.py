"""The cost of decoding an image, as estimated from its header."""

from typing import NamedTuple

from must.base.errors import UserError

MAX_SEGMENTS = 100_000
"""Strips, tiles or entries of a TIFF. Large files from cameras and editors have some thousands."""

MAX_STEPS = 200_000
"""The most parts of one file that are parsed: segments, chunks, boxes, fields, pieces and units together."""

SEGMENT_SECONDS = 7e-6
"""Seconds that Pillow takes for each segment or chunk, whatever its content."""

PROFILE_NANOSECONDS = 60
"""Per pixel: conversion from CMYK or Lab by a colour profile."""

RGB_BYTES = 8
"""Bytes per pixel of any image: RGB in Pillow's memory layout (4), and a second copy while it is rotated."""

SLACK = 16_000_000
"""Bytes for the strip that is being converted, which does not depend on the size of the image."""


class Cost(NamedTuple):
    """`memory`: bytes at the peak, including the file's; `seconds`: on one core of about 3 GHz.

    Both are upper estimates; benchmarks/image_cost.py compares them with measurements.
    """

    format: str  # Pillow's name
    width: int
    height: int
    memory: int
    seconds: float

    @property
    def pixels(self) -> int:
        return self.width * self.height

    @property
    def megapixels(self) -> float:
        """The size of the image, or that of a plain image which takes the same time, if that is larger."""
        return max(self.pixels / 1e6, self.seconds / 50e-3)


def costs(
    kind: str, size: tuple[int, int], data: bytes, decoder_bytes: float = 4, nanoseconds: tuple[float, float] = (15, 10)
) -> Cost:
    """The cost of an image of the given (width, height).

    `decoder_bytes`: memory of the decoder per pixel, besides the RGB. `nanoseconds`: for decoding, per pixel and per
    byte of the file; conversion takes another 12 per pixel.
    """
    width, height = size
    pixels, (per_pixel, per_byte) = width * height, nanoseconds
    memory = len(data) + int(pixels * max(RGB_BYTES, 4 + decoder_bytes)) + SLACK
    return Cost(kind, width, height, memory, (pixels * (per_pixel + 12) + per_byte * len(data)) / 1e9)


class Steps:
    """Counts the steps of the parsers of one file's headers, so that estimating the cost has a limit, too."""

    def __init__(self, limit: int = MAX_STEPS) -> None:
        self.limit = self.remaining = limit

    def take(self, count: int = 1) -> None:
        """Raises ValueError: the file has too many parts."""
        self.remaining -= count
        if self.remaining < 0:
            raise UserError(f"its headers have more than {self.limit} parts")


class Bits:
    """Reads numbers from a stream of bits; `remaining`: bits that are not read yet. Bits after its end are zeros."""

    def __init__(self, data: bytes) -> None:
        self.bits, self.remaining = int.from_bytes(data, "big"), 8 * len(data)

    def __call__(self, count: int) -> int:
        self.remaining -= count
        return self.bits >> self.remaining & (1 << count) - 1 if self.remaining >= 0 else 0


def number(data: bytes, offset: int, size: int, order: str = "big") -> int:
    """An unsigned number of `size` bytes; bytes after the end of the data are zeros."""
    return int.from_bytes(data[offset : offset + size].ljust(size, b"\0"), order)  # type: ignore[arg-type]
