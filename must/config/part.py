"""The parameter --part I/N of several stages: the work of one of N programs that share it."""

from must.base.parameters import require


def parts_of(programs: int) -> list[str]:
    """The values of --part for this number of programs."""
    return [f"{number}/{programs}" for number in range(1, programs + 1)]


def parse_part(part: str) -> tuple[int, int]:
    """(I, N) of --part, I from 1. 1/1 is all of the work. Raises ValueError: not I/N, or I is not from 1 to N."""
    numbers = [int(text) for text in part.split("/") if text.isascii() and text.isdigit() and len(text) < 10]
    require(part.count("/") == 1 and len(numbers) == 2, f"--part {part}: expected I/N, such as 1/4")
    number, count = numbers
    require(count >= 1, f"--part {part}: there is at least 1 part")
    require(1 <= number <= count, f"--part {part}: parts are numbered from 1 to {count}")
    return number, count
