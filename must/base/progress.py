"""Progress: bars in a terminal or notebook, otherwise a line each minute: of the log, or on standard error if
nothing shows the log."""

import gc
import importlib
import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from tqdm.std import tqdm

from must.base.console import TO_STDERR, Console, is_heard
from must.base.exits import answers_signals
from must.base.processes import without_collector

logger = logging.getLogger(__name__)

LINE_INTERVAL = 60.0  # seconds between two lines


class Bar(tqdm):  # type: ignore[type-arg]  # of no type at run time
    """A bar in a terminal. Elsewhere, unless `quiet`: a line with the same numbers after each minute without a line."""

    def __init__(self, iterable: Any = None, quiet: bool = False, **options: Any) -> None:
        super().__init__(iterable, disable=quiet or None, **options)
        self.is_logged, self.started = self.disable and not quiet, time.monotonic()
        self.meter = {"prefix": options.get("desc", ""), "unit": options.get("unit", "it"), "initial": self.n}

    def __iter__(self) -> Iterator[Any]:
        if not self.is_logged:
            yield from super().__iter__()
            return
        for element in self.iterable:
            yield element
            self.update()

    def update(self, n: float | None = 1) -> bool | None:
        if not self.is_logged:
            return super().update(n)
        self.n += n or 0
        now = time.monotonic()
        if now - max(Console.last_line_at, self.started) >= LINE_INTERVAL:
            Console.last_line_at = now  # also where a program has another handler
            line = tqdm.format_meter(self.n, self.total or 0, now - self.started, ncols=0, **self.meter)
            if is_heard():
                logger.info(line, extra=TO_STDERR)
            else:  # a script that configures no logging must not look dead for hours
                tqdm.write(line, file=sys.stderr)
        return None


def bar(iterable: Any = None, *, quiet: bool = False, **options: Any) -> "tqdm[Any]":
    """A bar with tqdm's `options`: tqdm.auto's bar in a notebook (it needs ipywidgets), else a bar in the terminal.

    Its attribute `disable` is true if no bar is shown, so that lines can be printed instead."""
    if "ipykernel" not in sys.modules:  # tqdm.auto imports asyncio, which would slow down every command
        return Bar(iterable, quiet, **options)
    from tqdm.auto import tqdm as tqdm_auto
    from tqdm.notebook import tqdm_notebook

    is_widget = issubclass(tqdm_auto, tqdm_notebook)  # it needs no terminal
    return tqdm_auto(iterable, disable=True if quiet else False if is_widget else None, **options)


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


def load_torch(command: str) -> None:
    """Imports torch and open_clip, which takes seconds: in a terminal it is logged that they are being loaded.

    The garbage collector would search a million new objects again and again: it is off meanwhile, and in a program of
    must it leaves these objects alone from then on, which saves a third of the time."""
    if "torch" not in sys.modules and sys.stderr is not None and sys.stderr.isatty():
        logger.info(f"must {command}: loading torch and the model ...", extra=TO_STDERR)
    with without_collector():
        importlib.import_module("open_clip")
        if answers_signals():
            gc.freeze()
