"""Replays the corpus in the same way every time, and counts what each input costs.

    python -m tests.fuzz.replay [TARGET ...]

The corpus of a target: its seeds, what fuzzing has found, and each of these with bytes changed by fixed seeds. An input
that takes more memory or processor time than its target may, or raises what is no refusal, is a finding; the exit code
is 1.
"""

from __future__ import annotations

import faulthandler
import gc
import random
import sys
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tests.fuzz.targets import TARGETS, Target, run

FOUND = sorted((Path(__file__).parent / "found").glob("*"))
CHANGED = 40  # inputs of a target with bytes changed
HANGS = 120  # seconds of the clock
HEADERS, HEADERS_S = 10_000, 0.2  # of tar, and the seconds they take the standard library where bounds hold as they are
NUMBERS = [bytes(4), b"\xff" * 4, b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f", b"\1", b"\xff\xd8", b"9" * 30]


class Spent(NamedTuple):
    memory: int  # bytes, above what there was before
    seconds: float  # of the processor, all threads
    why: str  # "" if it was read or refused


def spent(target: Target, data: bytes) -> Spent:
    """What reading these bytes takes. Linux: the peak of this process is set back before."""
    Path("/proc/self/clear_refs").write_text("5")
    gc.collect()
    gc.freeze()  # what else this process holds, all of torch perhaps, is looked through once, not for each input
    before, begun, why = status("VmRSS"), time.process_time(), ""
    try:
        run(target, data)
    except Exception as error:
        why = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    found = Spent(max(0, status("VmHWM") - before), time.process_time() - begun, why)
    if not why and found.memory > target.memory:
        why = f"{found.memory / 1e6:.0f} MB; {target.memory / 1e6:.0f} are allowed"
    if not why and found.seconds > target.seconds and found.seconds > (allowed := target.seconds * slowness()):
        why = f"{found.seconds:.1f} s of the processor; {allowed:.1f} are allowed"
    return found._replace(why=why)


def slowness() -> float:
    """How many times slower this machine is now than the one that the targets' seconds were set on; at least 1."""
    header, begun = tarfile.TarInfo("name").tobuf(), time.process_time()
    for _ in range(HEADERS):
        tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape")
    return max(1.0, (time.process_time() - begun) / HEADERS_S)


def status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


def inputs(name: str) -> Iterator[tuple[str, bytes]]:
    """(what it is, bytes), in the same order every time."""
    kept = [(f"seed {number}", seed) for number, seed in enumerate(TARGETS[name].seeds())]
    kept += [(path.name, path.read_bytes()) for path in FOUND if path.name.split("-")[0] == name]
    yield from kept
    for number in range(CHANGED):
        chance = random.Random(f"{name} {number}")
        what, data = chance.choice(kept)
        yield f"{what}, changed {number}", changed(data, chance)


def changed(data: bytes, chance: random.Random) -> bytes:
    for _ in range(chance.randint(1, 4)):
        at = min(chance.randrange(len(data)), chance.randrange(len(data)))  # headers are at the beginning
        new = chance.choice(NUMBERS)
        data = chance.choice(
            [data[:at] + new + data[at + len(new) :], data[:at] + new + data[at:], data[: at + 1], data + data[at:]]
        )
    return data


def replay(name: str) -> bool:
    """Prints a line for the target and one for each finding; whether there is none."""
    worst, count, findings = Spent(0, 0.0, ""), 0, []
    for what, data in inputs(name):
        faulthandler.dump_traceback_later(HANGS, exit=True)
        found = spent(TARGETS[name], data)
        faulthandler.cancel_dump_traceback_later()
        worst = Spent(max(worst.memory, found.memory), max(worst.seconds, found.seconds), "")
        count += 1
        if found.why:
            findings.append(f"  {what}: {found.why}")
    print(f"{name:<12}{count:>5} inputs, at most {worst.memory / 1e6:5.0f} MB and {worst.seconds:5.2f} s", flush=True)
    print("".join(line + "\n" for line in findings), end="", flush=True)
    return not findings


def main() -> int:
    chosen = sys.argv[1:] or list(TARGETS)
    return int(sum(not replay(name) for name in chosen) > 0)


if __name__ == "__main__":
    sys.exit(main())
