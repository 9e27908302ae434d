"""What a program of must shows and how it ends: progress, exit codes, its error message of one line, and SIGTERM.

`exiting` and the exit codes are only for the outermost block of a program (the command line, the supervised process of
a stage or of a node). All other code raises exceptions. Progress is a bar in a terminal or notebook, otherwise a line
each minute: of the log, or on standard error if nothing shows the log."""

import atexit
import gc
import importlib
import json
import logging
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

from tqdm.std import tqdm

from must.base.console import TO_STDERR, Console, attach, is_heard
from must.base.errors import MustError, TransientError, UserError
from must.base.lock import HeldError, LockLostError
from must.base.processes import DaemonThreads, without_collector
from must.base.text import make_printable

logger = logging.getLogger(__name__)


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
def exiting_at_terminal(command: str, program: str = "must") -> Iterator[None]:
    """`exiting` for what a person types, whose end is also Ctrl-C and a closed pipe (`must ... | head`)."""
    with exiting(command, program):
        try:
            yield
        except BrokenPipeError:
            sys.stderr.close()
            raise SystemExit(BUG) from None
        except KeyboardInterrupt:
            print(f"{program} {command}: interrupted; run the same command again", file=sys.stderr)
            raise SystemExit(INTERRUPTED) from None


@contextmanager
def exiting(command: str, program: str = "must") -> Iterator[None]:
    """Turns the block's errors into a line on standard error and an exit code, and SIGTERM into 75; prints its log on
    the console. The error is also written to ERROR_FILE.
    Raises SystemExit: for a MustError, an OSError or a MemoryError. Any other exception is a bug and passes through,
    with its traceback."""
    attach()
    atexit.register(prepare_last_collection)
    code = BUG
    try:
        with handling(signal.SIGTERM, partial(end_program, f"{program} {command}")):
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
        print(f"{program} {command}: {format_error(error)}", file=sys.stderr)
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
        return make_printable(f"{where}{error.strerror}{full}", LONGEST_LINE)
    text = str(error).strip()
    if isinstance(error, MemoryError):
        text = f"memory is full; give it more, or less to read{text and ': '}{text}"
    if "Original Traceback" in text:
        text = text.splitlines()[-1].partition(": ")[2]  # after the name of the class
    return make_printable(" ".join(text.split()), LONGEST_LINE)


def end_program(name: str, number: int, frame: object) -> NoReturn:
    """The handler of SIGTERM: no incomplete file is left, and the same command can be run again. (The kernel does not
    end process 1 of a container without one.) Stages that save their state install their own while they run."""
    # When one rank has failed, torchrun stops the others: they print nothing, so that the error is the last line.
    if is_first_rank():
        print(f"{name}: stopped by SIGTERM; run the same command again to go on", file=sys.stderr)
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


def show_bar(iterable: Any = None, *, quiet: bool = False, **options: Any) -> "tqdm[Any]":
    """A bar with tqdm's `options`: tqdm.auto's bar in a notebook (it needs ipywidgets), else a bar in the terminal.

    Its attribute `disable` is true if no bar is shown, so that lines can be printed instead."""
    if "ipykernel" not in sys.modules:  # tqdm.auto imports asyncio, which would slow down every command
        return Bar(iterable, quiet, **options)
    from tqdm.auto import tqdm as tqdm_auto
    from tqdm.notebook import tqdm_notebook

    is_widget = issubclass(tqdm_auto, tqdm_notebook)  # it needs no terminal
    return tqdm_auto(iterable, disable=True if quiet else False if is_widget else None, **options)


@contextmanager
def show_parts(command: str, total: int) -> Iterator[Callable[[str], None]]:
    """Shows a bar of a stage's `total` parts; yields a function to call with the name of each part that begins."""
    with show_bar(total=total, unit="part", desc=command, leave=False) as shown:
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
