"""docs/security.md: each promise names where it is kept and a test that shows it, and these exist."""

import re

from tests.common import ROOT

PAGE = (ROOT / "docs" / "security.md").read_text()


def rows(title):
    """The cells of the table under a heading."""
    section = PAGE.split(f"## {title}\n", 1)[1].split("\n## ", 1)[0]
    lines = [line for line in section.splitlines() if line.startswith("|")][2:]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]


def test_every_promise_says_where_it_is_kept_and_what_shows_it():
    promises = rows("Promises")
    assert len(promises) >= 20
    for what, promise, where, shown in promises:
        places, tests = re.findall(r"`([^`]+)`", where), re.findall(r"`([^`]+)`", shown)
        assert what and promise and places and tests, what
        for name in places + tests:
            assert (ROOT / name).exists(), f"{what}: {name}"
        assert all(re.fullmatch(r"tests/(\w+/){0,2}test_\w+\.py", name) for name in tests), what


def test_everyone_who_is_trusted_is_also_told_with_what_not():
    trusted = rows("Who is trusted with what")
    assert len(trusted) >= 12 and all(len(row) == 3 and all(row) for row in trusted)
