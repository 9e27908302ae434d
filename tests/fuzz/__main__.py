"""Fuzzes every target for some seconds, two at a time: python -m tests.fuzz SECONDS [TARGET ...]"""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

FOLDER = Path("build/fuzz")
AT_ONCE = 2


def fuzz(name: str, seconds: int) -> tuple[str, bool]:
    """(a line about it, whether it found nothing)"""
    command = [sys.executable, "-m", "tests.fuzz.one", name, str(seconds), str(FOLDER)]
    with (FOLDER / f"{name}.log").open("wb") as log:
        code = subprocess.run(command, stdout=log, stderr=log, timeout=seconds + 300, check=False).returncode
    text = (FOLDER / f"{name}.log").read_text(errors="replace")
    executions = int((re.findall(r"number_of_executed_units:\s*(\d+)", text) or ["0"])[-1])
    if code == 0 and executions:
        return f"{name:<12}{executions:>12,} executions, nothing found", True
    reason = (re.findall(r"Uncaught Python exception: ===\n(.*)|ERROR: (libFuzzer: .*)", text) or [("", "")])[-1]
    said = "".join(reason) or f"exit code {code}"
    return f"{name:<12}{executions:>12,} executions, FOUND: {said[:150]} (see {FOLDER}/{name}.log)", False


def main() -> None:
    seconds, names = int(sys.argv[1]), sys.argv[2:]
    if importlib.util.find_spec("atheris") is None:
        sys.exit("fuzz: the package atheris is not installed here; pip install 'must-clip[fuzz]'")
    from tests.fuzz.targets import TARGETS

    FOLDER.mkdir(parents=True, exist_ok=True)
    whole = True
    with ThreadPoolExecutor(AT_ONCE) as pool:
        for line, good in pool.map(lambda name: fuzz(name, seconds), names or TARGETS):
            print(line, flush=True)
            whole = whole and good
    sys.exit(0 if whole else 1)


if __name__ == "__main__":
    main()
