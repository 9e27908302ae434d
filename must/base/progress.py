"""Progress: bars on a terminal and in a notebook, a line a minute elsewhere."""

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
        """Their numbers."""


Batch = TypeVar("Batch", bound=Images)

LINE_INTERVAL = 60.0  # seconds between two lines
UNIT_WORDS = {"img": "images", "shard": "shards", "step": "steps", "part": "parts"}
_speaking = threading.Lock()  # a process is not forked while another thread writes
if hasattr(os, "register_at_fork"):
    release = _speaking.release
    os.register_at_fork(before=_speaking.acquire, after_in_parent=release, after_in_child=release)
_stages: list[str] = []  # that are at work, one inside the other
_unseen: list["Counted"] = []  # bars that nobody sees, the innermost last


class Counted(tqdm):  # type: ignore[type-arg]  # of no type at run time
    """A bar that counts where it is not shown, too."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.what, self.of = options.get("desc") or "at work", UNIT_WORDS.get(options.get("unit", ""), "")
        self.began, self.first = time.monotonic(), self.n
        if self.disable and not options.get("disable"):
            _unseen.append(self)

    def __iter__(self) -> Iterator[Any]:
        if not self.disable:
            yield from super().__iter__()
            return
        with self:
            for one in self.iterable:
                yield one
                self.update()

    def update(self, n: float | None = 1) -> bool | None:
        if self.disable:
            self.n += n or 0
            return None
        return super().update(n)

    def close(self) -> None:
        if _unseen and self in _unseen:  # at the end of a program modules have no values
            _unseen.remove(self)
        super().close()

    def line(self) -> str:
        """What is done, how much of it, and how long the rest takes at this rate."""
        done, seconds = self.n - self.first, time.monotonic() - self.began
        name = f" ({text})" if (text := getattr(self, "postfix", "")) and isinstance(text, str) else ""
        said = f"{self.what}{name}: {self.n:,}" + (f" of {self.total:,}" if self.total else "") + f" {self.of}".rstrip()
        if not done or self.of == "parts":  # which are not alike
            return f"{said}, at work for {duration(seconds)}"
        rate = done / seconds
        return f"{said}, {rate:,.1f} a second" + (
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
    """A bar with tqdm's `options`: tqdm.auto's in a notebook, which needs ipywidgets, else that of a terminal.

    Its `disable` tells whether there is none, so that lines can be printed instead.
    """
    if "ipykernel" not in sys.modules:  # tqdm.auto imports asyncio, which every command would wait for
        return Counted(iterable, disable=quiet or None, **options)
    from tqdm.auto import tqdm as best
    from tqdm.notebook import tqdm_notebook

    shown = issubclass(best, tqdm_notebook)  # it writes to no terminal, and needs none
    return best(iterable, disable=True if quiet else False if shown else None, **options)


@contextmanager
def working(stage: str) -> Iterator[None]:
    """A stage that is named where the command is another one."""
    _stages.append(stage)
    try:
        yield
    finally:
        _stages.pop()


@contextmanager
def minutely(command: str, waits: bool = False) -> Iterator[None]:
    """Where there is no terminal: after a minute without a line, one that says how far the block is.

    `waits`: it may be waiting for people, and has nothing to say then.
    """
    if (sys.stderr is not None and sys.stderr.isatty()) or os.environ.get("RANK", "0") != "0":
        yield
        return
    began, done = time.monotonic(), threading.Event()

    def speak() -> None:
        while not done.wait(max(LINE_INTERVAL + max(Console.said, began) - time.monotonic(), 0.01)):
            if time.monotonic() - max(Console.said, began) < LINE_INTERVAL:
                continue
            unseen = _unseen[-1:]
            if unseen or not waits:
                stage = f"{_stages[-1]}, " if _stages[1:] else ""
                what = unseen[0].line() if unseen else f"{stage}at work for {duration(time.monotonic() - began)}"
                with _speaking:
                    logger.info(f"must {command}: {what}", extra=ASIDE)
            else:
                Console.said = time.monotonic()

    thread = threading.Thread(target=speak, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def watched(batches: Iterable[Batch], description: str) -> Iterator[Batch]:
    """The same batches, with a bar of their images in the first of several processes."""
    total = len(batches.numbers) if hasattr(batches, "numbers") else None
    first = os.environ.get("RANK", "0") == "0"
    with bar(total=total, unit="img", desc=description, leave=False, quiet=not first) as shown:
        for batch in batches:
            yield batch
            shown.update(len(batch.samples))


@contextmanager
def parts(command: str, total: int) -> Iterator[Callable[[str], None]]:
    """A bar of a stage's `total` parts; what it yields takes the name of the part that begins."""
    with bar(total=total, unit="part", desc=command, leave=False) as shown:
        begun = list[str]()

        def begin(name: str) -> None:
            shown.update(bool(begun))
            shown.set_postfix_str(name, refresh=True)
            begun.append(name)

        yield begin


def loading(command: str = "") -> None:
    """Says on a terminal that torch and a model are being loaded, unless torch is here already: it takes seconds."""
    if "torch" not in sys.modules and sys.stderr is not None and sys.stderr.isatty():
        logger.info(f"{f'must {command}: ' if command else ''}loading torch and the model ...", extra=ASIDE)
