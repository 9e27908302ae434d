"""The end of a must program: its exit codes, its error message of one line, and SIGTERM.

Only for the outermost block of a program (the command line, the supervised process of a stage or of a node). All other
code raises exceptions and uses no exit codes."""

import atexit
import gc
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from errno import EDQUOT, ENOSPC
from functools import partial
from typing import Any, NoReturn

from must.base.console import attach
from must.base.errors import MustError, TransientError, UserError
from must.base.lock import HeldError, LockLostError
from must.base.processes import DaemonThreads
from must.base.text import printable

BUG = 1
WRONG_INPUT = 2  # a line on standard error describes the problem
HELD = 73  # another run is writing there: run the same command again when it has ended (EX_CANTCREAT)
PREEMPTED = 75  # run the same command again (EX_TEMPFAIL)
TIME_OVER = 124  # a stage of the pipeline reached its time limit (the code of timeout(1))
INTERRUPTED = 130  # by the keyboard
KILLED = 137  # 128 + SIGKILL
LONGEST_LINE = 2000  # characters of an error message, which may quote external text
ERROR_FILE = "MUST_ERROR_FILE"  # environment variable: file for the error that ends the program, for its caller
LONGEST_ERROR = 1000  # characters in that file; as a pod's termination message it may have 4096 bytes
RANK_DELAY_S = 10  # seconds that the other ranks wait: torchrun shows only the first error


class Ended(SystemExit):
    """The end of a program with an exit code, whose reason was printed already."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(code)
        self.reason = reason


@contextmanager
def exiting(command: str) -> Iterator[None]:
    """Turns the block's errors into a line on standard error and an exit code, and SIGTERM into 75; prints its log on
    the console. The error is also written to ERROR_FILE.
    Raises SystemExit: for a MustError, an OSError or a MemoryError. Any other exception is a bug and passes through,
    with its traceback."""
    attach()
    atexit.register(prepare_last_collection)
    code = BUG
    try:
        with handling(signal.SIGTERM, partial(end_program, command)):
            yield
        code = 0
    except SystemExit as end:
        if isinstance(end, Ended):
            keep_error(end)
        code = find_exit_code(end)
        raise
    except Exception as error:
        keep_error(error)
        if not isinstance(error, MustError | OSError | MemoryError):
            raise
        if not is_first_rank():
            time.sleep(RANK_DELAY_S)
        print(f"must {command}: {format_error(error)}", file=sys.stderr)
        code = find_exit_code(error)
        raise SystemExit(code) from error
    finally:
        if code != BUG and DaemonThreads.running:
            for stream in (sys.stdout, sys.stderr):
                with suppress(OSError, ValueError):
                    stream.flush()
            os._exit(code)


def keep_error(error: BaseException) -> None:
    """Writes the error as a line of JSON to the file that ERROR_FILE names, if any. Of several processes with one file,
    such as the ranks of a training, the first one's counts: the others only lost it."""
    if file := os.environ.get(ERROR_FILE):
        kind, text = ("", error.reason) if isinstance(error, Ended) else (type(error).__name__, format_error(error))
        line = {"kind": kind, "text": text[:LONGEST_ERROR]}
        with suppress(OSError, ValueError), open(file, "a", encoding="utf-8") as output:
            if not output.tell():
                output.write(json.dumps(line, ensure_ascii=False) + "\n")


def prepare_last_collection() -> None:
    """Hides all objects from the interpreter's last collection, which takes a second once torch is imported. Where
    triton is, it must find them: else its bindings (nanobind) print them as leaked, after the program's last line."""
    (gc.unfreeze if "triton" in sys.modules else gc.freeze)()


def is_first_rank() -> bool:
    """Whether this is the first or only process of a run. torchrun starts the others."""
    return "TORCHELASTIC_RUN_ID" not in os.environ or os.environ.get("RANK", "0") == "0"


def find_exit_code(error: BaseException) -> int:
    """The exit code of a program that ends with `error`: 2 for wrong input, 73 if another run holds a lock, 75 for a
    temporary error."""
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else BUG if error.code else 0
    if isinstance(error, HeldError | LockLostError):
        return HELD
    if isinstance(error, TransientError):
        return PREEMPTED
    return WRONG_INPUT if isinstance(error, UserError | OSError | MemoryError) else BUG


def format_error(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        full = "; free some space, then run the same command again" if error.errno in (ENOSPC, EDQUOT) else ""
        where = f"{error.filename}: " if error.filename else ""
        return printable(f"{where}{error.strerror}{full}", LONGEST_LINE)
    text = str(error).strip()
    if isinstance(error, MemoryError):
        text = f"memory is full; give it more, or less to read{text and ': '}{text}"
    if "Original Traceback" in text:
        text = text.splitlines()[-1].partition(": ")[2]  # after the name of the class
    return printable(" ".join(text.split()), LONGEST_LINE)


def end_program(command: str, number: int, frame: object) -> NoReturn:
    """The handler of SIGTERM: no incomplete file is left, and the same command can be run again. (The kernel does not
    end process 1 of a container without one.) Stages that save their state install their own while they run."""
    # When one rank has failed, torchrun stops the others: they print nothing, so that the error is the last line.
    if is_first_rank():
        print(f"must {command}: stopped by SIGTERM; run the same command again to go on", file=sys.stderr)
    raise SystemExit(PREEMPTED)


@contextmanager
def handling(number: int, handler: Callable[[int, Any], object]) -> Iterator[None]:
    """Installs a signal handler while the block runs, in the main thread: no other may."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.signal(number, handler)
    try:
        yield
    finally:
        signal.signal(number, previous)


def answers_signals() -> bool:
    """Whether must may install signal handlers: in the main thread of a must program, not in one that imports must."""
    is_program = getattr(signal.getsignal(signal.SIGTERM), "func", None) is end_program
    return is_program and threading.current_thread() is threading.main_thread()
