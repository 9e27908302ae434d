"""The console output of a program. The library logs to the logger "must" and its children, and never configures it.

The command line and the pipeline's processes configure it with `attach`; a program that imports must uses the functions
of `logging` (docs/python.md)."""

import logging
import os
import re
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from logging.handlers import MemoryHandler
from pathlib import Path

TO_STDERR = {"stream": "stderr"}  # the `extra` of a log line that is no result: it goes to standard error


class Console(logging.Handler):
    """Prints each line unformatted and flushes it: warnings to standard error, other lines to standard output.

    Errors of a stream (a log on a full disk) are ignored, except a closed pipe at standard output
    (`must ... | head`), which ends the program, as with print."""

    last_line_at = 0.0  # time.monotonic() of the last line

    def emit(self, record: logging.LogRecord) -> None:
        to_stderr = record.levelno >= logging.WARNING or getattr(record, "stream", "") == "stderr"
        Console.last_line_at = time.monotonic()  # of the class: of all consoles
        try:
            print(self.format(record), file=sys.stderr if to_stderr else sys.stdout, flush=True)
        except OSError as error:
            if isinstance(error, BrokenPipeError) and not to_stderr:
                raise


def open_closed() -> None:
    """Opens closed standard streams (`must ... 2>&-`) on /dev/null, so that no other file gets their descriptors."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115 - until the program ends


def is_heard() -> bool:
    """Whether a handler shows what the library logs. Without one, Python would show warnings only."""
    handlers = [*logging.getLogger("must").handlers, *logging.getLogger().handlers]
    return any(not isinstance(handler, logging.NullHandler) for handler in handlers)


def attach() -> None:
    """Adds a Console to the logger "must", unless the program has configured a handler; sets its level, if unset."""
    root = logging.getLogger("must")
    if root.level == logging.NOTSET:
        root.setLevel(logging.INFO)
    if all(isinstance(handler, logging.NullHandler) for handler in root.handlers):
        root.addHandler(Console())
        root.propagate = False  # a root handler would print each line a second time


@contextmanager
def replaced(pattern: str, new: str) -> Iterator[None]:
    """Shows `new` in the place of a regular expression in the lines of the logger "must" while the block runs."""

    def replace(record: logging.LogRecord) -> bool:
        record.msg, record.args = re.sub(pattern, lambda _: new, record.getMessage()), ()
        return True

    handlers = logging.getLogger("must").handlers[:]
    for handler in handlers:
        handler.addFilter(replace)
    try:
        yield
    finally:
        for handler in handlers:
            handler.removeFilter(replace)


@contextmanager
def spoken_by(name: str, verbose: bool) -> Iterator[MemoryHandler]:
    """While the block runs, handlers of the logger "must" show no lines but those of `name`, unless `verbose`, and each
    warning once. Yields a handler that has kept all lines."""

    def make_filter() -> Callable[[logging.LogRecord], bool]:
        shown = set[str]()

        def is_shown(record: logging.LogRecord) -> bool:
            known, text = len(shown), record.getMessage()
            if record.levelno >= logging.WARNING:
                shown.add(text)
                return len(shown) > known
            return verbose or record.name.startswith(name)

        return is_shown

    root, kept = logging.getLogger("must"), MemoryHandler(1_000_000, logging.CRITICAL + 1, flushOnClose=False)
    filters = [(handler, make_filter()) for handler in root.handlers]
    for handler, one in filters:
        handler.addFilter(one)
    root.addHandler(kept)
    try:
        yield kept
    finally:
        root.removeHandler(kept)
        for handler, one in filters:
            handler.removeFilter(one)


def write_lines(kept: MemoryHandler, file: Path) -> None:
    """Writes the lines that a handler has kept, with their times."""
    target = logging.FileHandler(file, "w", encoding="utf-8", errors="backslashreplace")
    target.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    kept.setTarget(target)
    kept.flush()
    target.close()


@contextmanager
def quieted(level: int, *names: str) -> Iterator[None]:
    """Raises the level of these loggers ("": the root logger) to at least `level` while the block runs."""
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(max(level, logger.level))
        yield
    finally:
        for logger, previous in zip(loggers, levels, strict=True):
            logger.setLevel(previous)


def silence_pillow() -> None:
    """Hides Pillow's warnings, which no user can act on. For must's own processes, not programs that import must."""
    warnings.filterwarnings("ignore", module=r"PIL\.")
