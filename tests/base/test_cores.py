"""A container's limits count as cores and memory, and both limit the number of processes."""

import os
from pathlib import Path

import pytest

from must.api.stages import call
from must.base import processes
from must.base.processes import cores, memory_bytes


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"cpu.max": "800000 100000"}, 8),
        ({"cpu.max": "max 100000"}, 96),
        ({"cpu.max": "50000 100000"}, 1),
        ({"cpu.max": "250000 100000"}, 2),
        ({"cpu.max": "nonsense"}, 96),
        ({"cpu/cpu.cfs_quota_us": "200000", "cpu/cpu.cfs_period_us": "100000"}, 2),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 96),
        ({}, 96),
    ],
)
def test_the_limit_of_a_control_group_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, str], expected: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(96)))
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(f"{content}\n")
    assert cores(tmp_path) == expected


@pytest.mark.parametrize("file", ["memory.max", "memory/memory.limit_in_bytes"])
def test_a_containers_memory_counts(tmp_path: Path, file: str) -> None:
    whole = memory_bytes(tmp_path)
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_text("max\n")
    assert memory_bytes(tmp_path) == whole > 10**8
    (tmp_path / file).write_text("3000000\n")
    assert memory_bytes(tmp_path) == 3_000_000


@pytest.mark.parametrize(
    ("count", "memory", "world", "most"),
    [(4, 10**12, "1", 64), (4, 10**9, "1", 10), (4, 10**12, "4", 16), (1, 1, "1", 2)],
)
def test_more_workers_than_the_machine_holds_are_refused_before_any_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int, memory: int, world: str, most: int
) -> None:
    monkeypatch.setattr(processes, "cores", lambda: count)
    monkeypatch.setattr(processes, "memory_bytes", lambda: memory)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", world)
    processes.check_processes(most, "--workers")
    with pytest.raises(ValueError, match=rf"--workers 1000000: more than the {most} that this machine has the cores"):
        call("shard", source=str(tmp_path), output=str(tmp_path / "out"), workers=1_000_000)
