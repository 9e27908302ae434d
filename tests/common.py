"""What tests of several folders do: run programs, wait, read tables, and look at what is said about a mistake."""

import csv
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]


@contextmanager
def one_line(match: str) -> Iterator[pytest.ExceptionInfo[ValueError]]:
    """A ValueError of one line, in which the pattern is found."""
    with pytest.raises(ValueError, match=match) as error:
        yield error
    assert "\n" not in str(error.value), error.value


def ended(capture: pytest.CaptureFixture[str], code: int, function: Callable[..., object], *arguments: Any) -> str:
    """The one line on stderr of a program's function, which ends with this exit code."""
    with pytest.raises(SystemExit) as end:
        function(*arguments)
    said = capture.readouterr().err
    assert end.value.code == code, f"{end.value.code}: {said}"
    assert len(said.splitlines()) == 1, said
    return said.removesuffix("\n")


def printed(*command: object, **options: Any) -> str:
    """What a program prints on stdout, which ends with 0."""
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False, **options)
    assert done.returncode == 0, f"{command}: {done.stdout[-3000:]}{done.stderr[-3000:]}"
    return done.stdout


def until(condition: Callable[..., object], what: object = "waited in vain", *, process: Any = None) -> None:
    """Waits for what has long come to be where everything works, for as long as the process lives; `what`: what is said
    of it otherwise, or a function that says it."""
    end = time.monotonic() + 120
    while not condition():
        in_time = time.monotonic() < end and (process is None or process.poll() is None)
        assert in_time, what() if callable(what) else what
        time.sleep(0.01)


def read_csv(path: Path) -> list[dict[str, Any]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))
