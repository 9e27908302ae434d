"""The end of a must program: its exit codes, the one line about what went wrong, and SIGTERM.

For the outermost block of a program (the command line, a stage's supervised process, a node's) and nothing below it:
what such a program calls raises, and knows no codes.
"""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

from must.base.console import attach
from must.base.errors import MustError, TransientError, UserError
from must.base.lock import HeldError, LockLostError
from must.base.text import printable

BUG = 1
WRONG_INPUT = 2  # one line said what
HELD = 73  # another run is writing there: run the same again when that is over (EX_CANTCREAT)
PREEMPTED = 75  # run the same again (EX_TEMPFAIL)
TIME_OVER = 124  # a stage of the pipeline reached its limit (as timeout(1) has it)
INTERRUPTED = 130  # at the keyboard
KILLED = 137  # 128 + SIGKILL
LONGEST_LINE = 2000  # characters of the line that says what is wrong: it may quote what came from outside
RANK_DELAY_S = 10  # of a fault that all ranks find, torchrun shows only the first one


@contextmanager
def exiting(command: str) -> Iterator[None]:
    """The block's errors become exit codes: see `fail`. SIGTERM ends it with 75. What it logs stands on the console.

    Raises:
        SystemExit: for a MustError, an OSError or full memory. Anything else is a bug and goes on as what it is, with
            its traceback.
    """
    attach()
    try:
        with ending_on_sigterm(command):
            yield
    except (MustError, OSError, MemoryError) as error:
        fail(command, error)


def fail(command: str, error: Exception) -> NoReturn:
    """Prints one line; exits with 2 for the user's error, 73 where another run is at work, 75 for a transient one.

    Raises any other error again.
    """
    code = code_of(error)
    if code == BUG:
        raise error
    if os.environ.get("RANK", "0") != "0":
        time.sleep(RANK_DELAY_S)
    print(f"must {command}: {line_of(error)}", file=sys.stderr)
    raise SystemExit(code)


def code_of(error: BaseException) -> int:
    """The exit code of a program that `error` ends."""
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else BUG if error.code else 0
    if isinstance(error, HeldError | LockLostError):
        return HELD
    if isinstance(error, TransientError):
        return PREEMPTED
    return WRONG_INPUT if isinstance(error, UserError | OSError | MemoryError) else BUG


def line_of(error: BaseException) -> str:
    """What is wrong, for people, on one line."""
    if isinstance(error, OSError) and error.strerror:
        return printable(f"{error.filename}: {error.strerror}" if error.filename else error.strerror, LONGEST_LINE)
    text = str(error).strip()
    if isinstance(error, MemoryError):
        text = f"memory is full; give it more, or less to read{text and ': '}{text}"
    if "Original Traceback" in text:
        text = text.splitlines()[-1].partition(": ")[2]  # after the class
    return printable(" ".join(text.split()), LONGEST_LINE)


@contextmanager
def ending_on_sigterm(command: str) -> Iterator[None]:
    """SIGTERM ends the block with exit code 75: nothing half-written is left, and the same can be run again.

    In a container a stage is the first process, which the kernel does not end by a signal it did not ask for. Stages
    that save their state take the signal over while they run.
    """

    global _programs

    def stop(number: int, frame: object) -> None:
        # torchrun stops the others when one has failed: a line of theirs would come after the one that says why.
        if os.environ.get("RANK", "0") == "0":
            print(f"must {command}: stopped by SIGTERM; run the same command again to go on", file=sys.stderr)
        raise SystemExit(PREEMPTED)

    with handling(signal.SIGTERM, stop) as ours:
        _programs += ours
        try:
            yield
        finally:
            _programs -= ours


@contextmanager
def handling(number: int, handler: Callable[[int, Any], object]) -> Iterator[bool]:
    """`handler` answers a signal while the block lasts; in the main thread alone, the only one that may: is it that?"""
    if threading.current_thread() is not threading.main_thread():
        yield False
        return
    before = signal.signal(number, handler)
    try:
        yield True
    finally:
        signal.signal(number, before)


_programs = 0  # blocks of `ending_on_sigterm` that this process is in


def answers_signals() -> bool:
    """Whether signals are ours to handle: in the main thread of a must program, and never in one that imports must."""
    return _programs > 0 and threading.current_thread() is threading.main_thread()
