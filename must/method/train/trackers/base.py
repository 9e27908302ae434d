"""What a tracker is."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from must.base.text import one_line, printable


@dataclass(frozen=True)
class Attempt:
    """One attempt of a run, which may have been stopped and go on."""

    folder: Path  # the run's output
    first_step: int  # 0 where the run begins
    lines: list[dict[str, Any]]  # the log until there: 'step' and values
    run_id: str  # the tracker's name for the run, from the checkpoint; '' for a new one


def points(values: dict[str, Any]) -> dict[str, float]:
    """What of a log line is a point of a curve."""
    return {name: float(value) for name, value in values.items() if isinstance(value, int | float) and name != "step"}


def reason(error: Exception) -> str:
    """What an error of a tracker's package says, on one line of at most 300 characters."""
    return printable(one_line(error), 300)


class Tracker(Protocol):
    """Gets the curves of one run. Steps come in ascending order; those that an earlier attempt has logged come again,
    and are logged once."""

    run_id: str  # after `start`: what a later attempt needs to go on with the same run; '' where nothing is needed

    def start(self, config: dict[str, Any]) -> None:
        """Begins the run, or goes on with it. Any error: there is no such place, or it does not answer."""

    def log(self, step: int, values: dict[str, float]) -> None:
        """A point of each curve."""

    def close(self, finished: bool) -> None:
        """Ends it. `finished`: the run took its last step; else it was stopped, and may go on."""
