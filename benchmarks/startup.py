"""How long a user waits for help, and for a line that says what is wrong: seconds, CPU seconds, and times Python alone.

    python benchmarks/startup.py [--runs 5]

Medians. "python -c pass" is what every command costs; "import torch, open_clip" is what the stages with a model need
before they can begin. Each command runs once before it counts, so that its files are in the page cache.
"""

from __future__ import annotations

import argparse
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
import time

PYTHON = (sys.executable, "-c")
MUST = (sys.executable, "-m", "must")
NEEDED = "--classifier none.safetensors --output model"
COMMANDS = {
    "python -c pass": [*PYTHON, "pass"],
    "python -c 'import torch, open_clip'": [*PYTHON, "import torch, open_clip"],
    **{
        f"must {words}": [*MUST, *shlex.split(words)]
        for words in (
            "--help",
            "train --help",
            f"train --shards nowhere {NEEDED}",
            f"train --shards nowhere {NEEDED} --epochs some",
            "evaluate --model nowhere --shards nowhere --output report",
            "predict --model nowhere.onnx photo.jpg",
        )
    },
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    runs = parser.parse_args().runs
    print(f"{'':<88}{'seconds':>8}{'CPU':>7}{'ratio':>7}")
    plain = 0.0
    for name, command in COMMANDS.items():
        measure(command)
        seconds, busy = (
            statistics.median(values) for values in zip(*(measure(command) for _ in range(runs)), strict=True)
        )
        plain = plain or busy
        print(f"{name:<88}{seconds:>8.2f}{busy:>7.2f}{busy / plain:>7.1f}")


def measure(command: list[str]) -> tuple[float, float]:
    """Seconds on the clock and on the CPUs, user and system together, of one run in an empty folder."""
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        process = subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        _, _, usage = os.wait4(process.pid, 0)
        return time.perf_counter() - began, usage.ru_utime + usage.ru_stime


if __name__ == "__main__":
    main()
