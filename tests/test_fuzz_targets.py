"""The fuzz targets hold on their seeds and on what fuzzing has found; `make fuzz` goes on from there."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from must.data.image import bounds
from tests.fuzz.targets import TARGETS, run

FOUND = sorted((Path(__file__).parent / "fuzz" / "found").glob("*"))


@pytest.fixture(autouse=True)
def elsewhere_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """Targets decode in this process."""
    monkeypatch.setattr(bounds, "memory_limited", bounds.memory_limited)


def changed(data: bytes, chance: random.Random) -> bytes:
    for _ in range(chance.randint(1, 4)):
        at = min(chance.randrange(len(data)), chance.randrange(len(data)))  # headers are at the beginning
        new = chance.choice([bytes(4), b"\xff" * 4, b"\x7f\xff\xff\xff", b"\1", b"\xff\xd8", b"9" * 30])
        data = chance.choice([data[:at] + new + data[at + len(new) :], data[:at] + new + data[at:], data[: at + 1]])
    return data


@pytest.mark.timeout(120)
@pytest.mark.parametrize("name", TARGETS)
def test_a_changed_seed_is_no_surprise(name: str) -> None:
    target, chance = TARGETS[name], random.Random(name)
    for seed in target.seeds():
        assert 0 < len(seed) <= target.longest
        for data in (seed, seed[: len(seed) // 2], seed[1:], *(changed(seed, chance) for _ in range(30))):
            run(target, data)


@pytest.mark.parametrize("name", TARGETS)
def test_the_first_seed_is_what_the_parser_takes(name: str) -> None:
    TARGETS[name].parse(TARGETS[name].seeds()[0])


@pytest.mark.parametrize("path", FOUND, ids=lambda path: path.name)
def test_what_was_found_is_mended(path: Path) -> None:
    """A file is named TARGET-WHAT."""
    run(TARGETS[path.name.split("-")[0]], path.read_bytes())
