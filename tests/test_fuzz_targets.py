"""The fuzz targets hold on their seeds and on what fuzzing has found; `make fuzz` goes on from there."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fuzz.targets import TARGETS, run

FOUND = sorted((Path(__file__).parent / "fuzz" / "found").glob("*"))


@pytest.mark.parametrize("name", TARGETS)
def test_every_seed_is_read_and_with_a_part_missing_is_no_surprise(name: str) -> None:
    for seed in TARGETS[name].seeds():
        assert 0 < len(seed) <= TARGETS[name].longest
        for data in (seed, seed[: len(seed) // 2], seed[1:], seed + b"\0" * 9, seed.replace(b"\0", b"\xff", 3)):
            run(TARGETS[name], data)


@pytest.mark.parametrize("name", TARGETS)
def test_the_first_seed_is_what_the_parser_takes(name: str) -> None:
    TARGETS[name].parse(TARGETS[name].seeds()[0])


@pytest.mark.parametrize("path", FOUND, ids=lambda path: path.name)
def test_what_was_found_is_mended(path: Path) -> None:
    """A file is named TARGET-WHAT."""
    run(TARGETS[path.name.split("-")[0]], path.read_bytes())
