"""What a header says that decoding will cost."""

from typing import NamedTuple

from must.base.errors import UserError

MAX_SEGMENTS = 100_000
"""Strips, tiles or entries of a TIFF. A large file of cameras and editors has some thousands."""

MAX_STEPS = 200_000
"""Parts of one file that are looked at: segments, chunks, boxes, fields, pieces, units, all together."""

A_SEGMENT = 7e-6
"""Seconds that Pillow takes for each, whatever it holds."""

PROFILED = 60
"""Nanoseconds a pixel of the way from printing inks through their profile."""

FINAL = 8
"""Bytes a pixel of any picture: RGB as Pillow holds it (4), once more while it is turned."""


SLACK = 16_000_000
"""Bytes of what is converted at a time, however large the picture is."""


class Cost(NamedTuple):
    """`memory`: bytes at the peak, the file's own among them; `seconds`: of one core of some 3 GHz.

    Both are meant to be too high rather than too low; benchmarks/image_cost.py compares them with what is measured.
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
        """What shares are counted in: the picture's, or as many of a plain picture as take the same time."""
        return max(self.pixels / 1e6, self.seconds / 50e-3)


def costs(
    kind: str, size: tuple[int, int], data: bytes, held: float = 4, nanoseconds: tuple[float, float] = (15, 10)
) -> Cost:
    """Of a picture of that (width, height), whose decoder holds `held` bytes a pixel beside the RGB.

    `nanoseconds`: a pixel and a byte of the file, for decoding; converting a pixel takes another 12.
    """
    width, height = size
    pixels, (a_pixel, a_byte) = width * height, nanoseconds
    memory = len(data) + int(pixels * max(FINAL, 4 + held)) + SLACK
    return Cost(kind, width, height, memory, (pixels * (a_pixel + 12) + a_byte * len(data)) / 1e9)


class Steps:
    """Counts what the parsers of one file's headers do, so that finding the cost has a bound of its own."""

    def __init__(self, most: int = MAX_STEPS) -> None:
        self.most = self.left = most

    def take(self, count: int = 1) -> None:
        """Raises ValueError: the file has more parts than are looked at."""
        self.left -= count
        if self.left < 0:
            raise UserError(f"its headers have more than {self.most} parts")


class Bits:
    """The numbers in a stream of bits, one after the other; `left`: bits to come. What is not there are zeros."""

    def __init__(self, data: bytes) -> None:
        self.bits, self.left = int.from_bytes(data, "big"), 8 * len(data)

    def __call__(self, count: int) -> int:
        self.left -= count
        return self.bits >> self.left & (1 << count) - 1 if self.left >= 0 else 0


def number(data: bytes, place: int, size: int, order: str = "big") -> int:
    """An unsigned number of so many bytes; bytes that are not there are zeros."""
    return int.from_bytes(data[place : place + size].ljust(size, b"\0"), order)  # type: ignore[arg-type]
