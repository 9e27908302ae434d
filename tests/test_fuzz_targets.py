"""The fuzz targets hold on their seeds and on what fuzzing has found; `make fuzz` goes on from there."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from must.data.image import bounds
from tests.fuzz.replay import inputs, spent
from tests.fuzz.targets import TARGETS, Target, run

FOUND = sorted((Path(__file__).parent / "fuzz" / "found").glob("*"))


@pytest.fixture(autouse=True)
def elsewhere_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """Targets decode in this process."""
    monkeypatch.setattr(bounds, "memory_limited", bounds.memory_limited)


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


def test_a_replay_is_always_the_same_and_counts_memory_and_time() -> None:
    assert list(inputs("tar")) == list(inputs("tar")) and len(list(inputs("tar"))) > 40
    code = (  # in a process that has no memory of other tests to use again
        "from tests.fuzz.replay import spent; from tests.fuzz.targets import Target\n"
        "print(spent(Target(lambda data: len(b'x' * 60_000_000), list, memory=20_000_000), b'').why)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[1]
    )
    assert "MB; 20 are allowed" in done.stdout
    slow = Target(lambda data: sum(range(10**6)), list, seconds=0.001)
    assert "of the processor; 0.0 are allowed" in spent(slow, b"").why
    assert spent(Target(lambda data: int(data), list), b"1").why == ""
