"""The interface of a tracker."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from must.base.text import one_line, printable


@dataclass(frozen=True)
class Attempt:
    """One attempt of a run, which may resume an earlier attempt."""

    folder: Path  # the run's output
    first_step: int  # 0 where the run begins
    lines: list[dict[str, Any]]  # the log up to `first_step`: 'step' and values
    run_id: str  # the tracker's name for the run, from the checkpoint; '' for a new one


def points(values: dict[str, Any]) -> dict[str, float]:
    """The values of a log line that are points of curves."""
    return {name: float(value) for name, value in values.items() if isinstance(value, int | float) and name != "step"}


def reason(error: Exception) -> str:
    """The message of an error of a tracker's package, in one line of at most 300 characters."""
    return printable(one_line(error), 300)


class Tracker(Protocol):
    """Receives the curves of one run. Steps are ascending; those of an earlier attempt are repeated, and must be logged
    only once."""

    run_id: str  # set by `start`: a later attempt needs it to continue the same run; '' if it does not

    def start(self, config: dict[str, Any]) -> None:
        """Starts or continues the run. Any exception: the tracker does not exist or does not respond."""

    def log(self, step: int, values: dict[str, float]) -> None:
        """A point of each curve."""

    def close(self, finished: bool) -> None:
        """Ends the run. `finished`: it took its last step; else it was stopped, and may be resumed."""
