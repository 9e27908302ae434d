"""A program's console. The library logs as the logger "must" and its children, and configures none; a program does.

The command line and the pipeline's processes do so with `attach`; a program that imports must, with logging's own
functions (docs/python.md).
"""

import logging
import os
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

ASIDE = {"aside": True}  # `extra` of a line that is no result: to standard error


class Console(logging.Handler):
    """Prints the bare line at once: warnings to standard error, the rest to standard output, as they are at the time.

    A stream that cannot be written to, a log on a full disk, ends nothing; but standard output whose reader is gone
    (`must ... | head`) ends the program, as with print.
    """

    said = 0.0  # when the last line came

    def emit(self, record: logging.LogRecord) -> None:
        aside = record.levelno >= logging.WARNING or getattr(record, "aside", False)
        Console.said = time.monotonic()  # of any console: a line is a line
        try:
            print(self.format(record), file=sys.stderr if aside else sys.stdout, flush=True)
        except OSError as error:
            if isinstance(error, BrokenPipeError) and not aside:
                raise


def open_closed() -> None:
    """Standard streams that are closed (`must ... 2>&-`) lead nowhere, so that no file of ours gets their numbers."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115 - until the program ends


def attach() -> None:
    """Gives the logger "must" its console, unless this program has given it handlers or a level already."""
    root = logging.getLogger("must")
    if root.level == logging.NOTSET:
        root.setLevel(logging.INFO)
    if all(isinstance(handler, logging.NullHandler) for handler in root.handlers):
        root.addHandler(Console())
        root.propagate = False  # a root handler would print each line a second time


@contextmanager
def quieted(level: int, *names: str) -> Iterator[None]:
    """Other libraries' loggers of these names, "" being the root, say nothing below `level` while the block lasts."""
    loggers = [logging.getLogger(name) for name in names]
    before = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(max(level, logger.level))
        yield
    finally:
        for logger, own in zip(loggers, before, strict=True):
            logger.setLevel(own)


def silence_pillow() -> None:
    """Nothing that a user could act on. For a stage's process and its workers; a host program decides for itself."""
    warnings.filterwarnings("ignore", module=r"PIL\.")
