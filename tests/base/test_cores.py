"""A container's CPU limit counts as cores, wherever its control group is mounted."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from must.base.processes import cores

V1, V2 = "cgroup cgroup rw,cpu,cpuacct", "cgroup2 cgroup rw"


def system(folder: Path, groups: str, root: str, kind: str, files: dict[str, str]) -> Path:
    """A process that is in `groups`; of the hierarchy the part from `root` is mounted, with these files."""
    top = folder / "mounted"
    for name, content in files.items():
        (top / name).parent.mkdir(parents=True, exist_ok=True)
        (top / name).write_text(content + "\n")
    (folder / "cgroup").write_text(groups + "\n")
    other = "21 20 0:5 / /proc rw,nosuid - proc proc rw\n"
    (folder / "mountinfo").write_text(f"{other}30 23 0:26 {root} {top} ro,nosuid shared:9 - {kind}\n")
    return folder


@pytest.fixture(autouse=True)
def many_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(96)))


@pytest.mark.parametrize(
    ("groups", "root", "kind", "files", "expected"),
    [
        ("0::/", "/", V2, {"cpu.max": "800000 100000"}, 8),
        ("0::/", "/", V2, {"cpu.max": "max 100000"}, 96),
        ("0::/", "/", V2, {"cpu.max": "50000 100000"}, 1),
        ("0::/", "/", V2, {"cpu.max": "250000 100000"}, 2),
        ("0::/", "/", V2, {}, 96),
        ("0::/pods/a/b", "/", V2, {"pods/a/cpu.max": "400000 100000", "pods/a/b/cpu.max": "max 100000"}, 4),
        ("0::/pods/a/b", "/", V2, {"pods/cpu.max": "300000 100000", "pods/a/b/cpu.max": "500000 100000"}, 3),
        ("0::/pods/a/b", "/pods/a", V2, {"cpu.max": "600000 100000", "b/cpu.max": "max 100000"}, 6),
        ("0::/../../other", "/", V2, {"cpu.max": "700000 100000"}, 7),
        ("4:cpu,cpuacct:/", "/", V1, {"cpu.cfs_quota_us": "200000", "cpu.cfs_period_us": "100000"}, 2),
        ("4:cpu,cpuacct:/", "/", V1, {"cpu.cfs_quota_us": "-1", "cpu.cfs_period_us": "100000"}, 96),
        ("4:cpu,cpuacct:/docker/x", "/docker/x", V1, {"cpu.cfs_quota_us": "300000", "cpu.cfs_period_us": "100000"}, 3),
        ("4:memory:/a", "/", "cgroup cgroup rw,memory", {"cpu.max": "100000 100000"}, 96),
        ("9:cpuset:/\n4:cpu:/k/p", "/", V1, {"k/cpu.cfs_quota_us": "500000", "k/cpu.cfs_period_us": "100000"}, 5),
        ("0::/", "/", V2, {"cpu.max": "nonsense"}, 96),
    ],
)
def test_the_limit_of_a_control_group_counts(
    tmp_path: Path, groups: str, root: str, kind: str, files: dict[str, str], expected: int
) -> None:
    assert cores(system(tmp_path, groups, root, kind, files)) == expected


def test_without_control_groups_the_affinity_counts(tmp_path: Path) -> None:
    assert cores(tmp_path) == 96
