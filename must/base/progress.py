"""Progress: bars in a terminal or notebook, otherwise a log line each minute."""

import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar

from tqdm.std import tqdm

from must.base.console import ASIDE, Console

logger = logging.getLogger(__name__)


class Images(Protocol):
    @property
    def samples(self) -> Any:
        """The numbers of the samples."""


Batch = TypeVar("Batch", bound=Images)

LINE_INTERVAL = 60.0  # seconds between two lines
UNIT_WORDS = {"img": "images", "shard": "shards", "step": "steps", "part": "parts"}
_log_lock = threading.Lock()  # no process is forked while another thread logs
if hasattr(os, "register_at_fork"):
    release = _log_lock.release
    os.register_at_fork(before=_log_lock.acquire, after_in_parent=release, after_in_child=release)
_stages: list[str] = []  # the nested stages that run, the innermost last
_hidden: list["Counted"] = []  # bars that are not shown, the innermost last


class Counted(tqdm):  # type: ignore[type-arg]  # of no type at run time
    """A bar that also counts while it is not shown."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.description, self.noun = options.get("desc") or "at work", UNIT_WORDS.get(options.get("unit", ""), "")
        self.started, self.first = time.monotonic(), self.n
        if self.disable and not options.get("disable"):
            _hidden.append(self)

    def __iter__(self) -> Iterator[Any]:
        if not self.disable:
            yield from super().__iter__()
            return
        with self:
            for element in self.iterable:
                yield element
                self.update()

    def update(self, n: float | None = 1) -> bool | None:
        if self.disable:
            self.n += n or 0
            return None
        return super().update(n)

    def close(self) -> None:
        if _hidden and self in _hidden:  # at the end of a program this module's names may be None
            _hidden.remove(self)
        super().close()

    def line(self) -> str:
        """The work, how much of it is done, and the time to its end at this rate."""
        done, seconds = self.n - self.first, time.monotonic() - self.started
        name = f" ({text})" if (text := getattr(self, "postfix", "")) and isinstance(text, str) else ""
        total = f" of {self.total:,}" if self.total else ""
        state = f"{self.description}{name}: {self.n:,}{total}" + f" {self.noun}".rstrip()
        if not done or self.noun == "parts":  # parts take different times, so they have no rate
            return f"{state}, at work for {duration(seconds)}"
        rate = done / seconds
        return f"{state}, {rate:,.1f} a second" + (
            f", {duration((self.total - self.n) / rate)} left" if self.total else ""
        )


def duration(seconds: float) -> str:
    """40 s, 12 min or 3.5 h."""
    return (
        f"{seconds:.0f} s"
        if seconds < 90
        else f"{seconds / 60:.0f} min"
        if seconds < 5400
        else f"{seconds / 3600:.1f} h"
    )


def bar(iterable: Any = None, *, quiet: bool = False, **options: Any) -> "tqdm[Any]":
    """A bar with tqdm's `options`: tqdm.auto's bar in a notebook (it needs ipywidgets), else a bar in the terminal.

    Its attribute `disable` is true if no bar is shown, so that lines can be printed instead.
    """
    if "ipykernel" not in sys.modules:  # tqdm.auto imports asyncio, which would slow down every command
        return Counted(iterable, disable=quiet or None, **options)
    from tqdm.auto import tqdm as tqdm_auto
    from tqdm.notebook import tqdm_notebook

    is_widget = issubclass(tqdm_auto, tqdm_notebook)  # it needs no terminal
    return tqdm_auto(iterable, disable=True if quiet else False if is_widget else None, **options)


@contextmanager
def working(stage: str) -> Iterator[None]:
    """Names the stage that runs inside another command, for `minutely`."""
    _stages.append(stage)
    try:
        yield
    finally:
        _stages.pop()


@contextmanager
def minutely(command: str, waits: bool = False) -> Iterator[None]:
    """Without a terminal: after each minute without a log line, logs the progress of the block.

    `waits`: the block may wait for people; then nothing is logged without a bar.
    """
    if (sys.stderr is not None and sys.stderr.isatty()) or os.environ.get("RANK", "0") != "0":
        yield
        return
    started, done = time.monotonic(), threading.Event()

    def log_progress() -> None:
        while not done.wait(max(LINE_INTERVAL + max(Console.last_line_at, started) - time.monotonic(), 0.01)):
            if time.monotonic() - max(Console.last_line_at, started) < LINE_INTERVAL:
                continue
            hidden = _hidden[-1:]
            if hidden or not waits:
                stage = f"{_stages[-1]}, " if _stages[1:] else ""
                line = hidden[0].line() if hidden else f"{stage}at work for {duration(time.monotonic() - started)}"
                with _log_lock:
                    logger.info(f"must {command}: {line}", extra=ASIDE)
            else:
                Console.last_line_at = time.monotonic()

    thread = threading.Thread(target=log_progress, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def watched(batches: Iterable[Batch], description: str) -> Iterator[Batch]:
    """Yields the batches and shows a bar of their images; of several processes only rank 0 shows it."""
    total = len(batches.numbers) if hasattr(batches, "numbers") else None
    first = os.environ.get("RANK", "0") == "0"
    with bar(total=total, unit="img", desc=description, leave=False, quiet=not first) as shown:
        for batch in batches:
            yield batch
            shown.update(len(batch.samples))


@contextmanager
def parts(command: str, total: int) -> Iterator[Callable[[str], None]]:
    """Shows a bar of a stage's `total` parts; yields a function to call with the name of each part that begins."""
    with bar(total=total, unit="part", desc=command, leave=False) as shown:
        names = list[str]()

        def begin(name: str) -> None:
            shown.update(bool(names))
            shown.set_postfix_str(name, refresh=True)
            names.append(name)

        yield begin


def loading(command: str = "") -> None:
    """Logs in a terminal that torch and a model are being loaded, which takes seconds, unless torch is loaded."""
    if "torch" not in sys.modules and sys.stderr is not None and sys.stderr.isatty():
        logger.info(f"{f'must {command}: ' if command else ''}loading torch and the model ...", extra=ASIDE)
