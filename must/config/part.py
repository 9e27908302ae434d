"""--part I/N, which several stages have: one of N programs that share the work."""

from must.base.parameters import require


def parts_of(programs: int) -> list[str]:
    """What each of so many programs is given as its --part."""
    return [f"{number}/{programs}" for number in range(1, programs + 1)]


def place_of(part: str) -> tuple[int, int]:
    """(I, N) of --part, I from 1. Raises ValueError: it is not of that form, or I is not from 1 to N."""
    first, slash, parts = part.partition("/")
    numbers = [int(text) for text in (first, parts) if text.isascii() and text.isdigit() and len(text) < 10]
    require(bool(slash) and len(numbers) == 2, f"--part {part}: expected I/N, such as 1/4")
    number, count = numbers
    require(count >= 1, f"--part {part}: there is at least 1 part")
    require(1 <= number <= count, f"--part {part}: parts are numbered from 1 to {count}")
    return number, count
