"""The number of processor cores this process may use, by its affinity and its container's limit."""

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path


def cores(process: Path = Path("/proc/self")) -> int:
    """The cores, at least 1. A container's limit is a quota of time, which the affinity does not show: 8 of 96, say."""
    here = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min([here, *(int(limit) for limit in quotas(process))]))


def quotas(process: Path) -> Iterator[float]:
    """The limits, in cores, of the process's control group and of those above it, in either version of cgroups."""
    for folder, top in control_groups(process):
        while True:
            yield from limit_in(folder)
            if folder == top:
                break
            folder = folder.parent


def control_groups(process: Path) -> Iterator[tuple[Path, Path]]:
    """(the group's folder, the mounted one at or above it) of each hierarchy that may limit processors."""
    try:
        groups = (process / "cgroup").read_text().splitlines()
        mounts = (process / "mountinfo").read_text().splitlines()
    except OSError:  # no Linux
        return
    for line in mounts:
        fields, _, rest = line.partition(" - ")
        if not rest.startswith("cgroup"):
            continue
        root, top = fields.split()[3:5]
        kind, _, options = rest.split()[:3]
        for group in groups:
            number, controllers, path = group.split(":", 2)
            if (kind == "cgroup2" and number == "0" and not controllers) or (
                kind == "cgroup" and "cpu" in controllers.split(",") and "cpu" in options.split(",")
            ):
                # What is mounted may be a part of the hierarchy, and the path then begins with that part or is outside.
                inside = path == root or path.startswith(root.rstrip("/") + "/")
                below = path[len(root.rstrip("/")) :].strip("/") if inside else ""
                yield Path(top, below), Path(top)


def limit_in(folder: Path) -> Iterator[float]:
    with suppress(OSError, ValueError):
        quota, period = (folder / "cpu.max").read_text().split()
        if quota != "max":
            yield int(quota) / int(period)
    with suppress(OSError, ValueError):
        quota, period = ((folder / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        if int(quota) > 0:
            yield int(quota) / int(period)
