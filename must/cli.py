"""The command line: one subcommand a stage, its flags made from must/config/."""

from __future__ import annotations

import argparse
import ctypes
import difflib
import importlib
import os
import re
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import must
from must.config import STAGES, TrainConfig
from must.first_look import first_look
from must.parameters import StageConfig, add_flags, load, read_yaml
from must.storage import LaterError
from must.text import printable

Result = TypeVar("Result")
STAGE_FUNCTIONS = {
    "shard": "must.data.shard:shard",
    "classifier": "must.model.classifier:classifier",
    "train": "must.train.trainer:train",
    "refine": "must.select.refine:refine",
    "select": "must.select.select:select",
    "evaluate": "must.evaluate.evaluate:evaluate",
    "export": "must.export.onnx:export",
    "gate": "must.promote.decide:gate",
    "promote": "must.promote.promote:promote",
    "predict": "must.export.predict:predict",
    "demo": "must.demo:demo",
}
LONGEST = 2000  # characters of the line that says what is wrong: it may quote what came from outside
PREEMPTED = 75  # exit code: run the same again (EX_TEMPFAIL)
ENDS_WITH_PARENT = "MUST_ENDS_WITH_PARENT"  # in torchrun's environment: a launcher that is killed takes it along
OTHERS_WAIT = 10  # seconds: of a fault that all processes find, torchrun lets only the first one speak
EPILOG = """\
exit codes: 0 done, 2 the input is wrong (one line says what), 75 stopped and resumable, 1 a bug
a first run:  must demo --output demo && must shard --source demo/images/unlabeled \\
              --test-source demo/images/test --labels folder --output demo/shards
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs a stage. Exits with 2 and one line when the user's input is wrong."""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        end_with_parent()
    options = vars(build_parser().parse_args(arguments))
    command = options.pop("command")
    try:
        if command == "index":
            run_index(options)
        else:
            run_stage(command, read_config(command, options))
    except BrokenPipeError:  # `must ... | head`
        sys.stderr.close()
        raise SystemExit(1) from None
    except (ValueError, OSError) as error:
        fail(command, error)
    except KeyboardInterrupt:
        print(f"must {command}: interrupted", file=sys.stderr)
        raise SystemExit(130) from None


def run(command: str, **values: Any) -> Any:
    """A stage from another program, such as a pipeline component: returns its result, exits as the command line does.

    Values that are None are left at their defaults.
    """
    try:
        return run_stage(command, read_config(command, {k: v for k, v in values.items() if v is not None}))
    except (ValueError, OSError) as error:
        fail(command, error)


def call(command: str, function: Callable[..., Result], *values: Any, **named: Any) -> Result:
    """Any function of this package, from a pipeline component: exits as the command line does."""
    try:
        return function(*values, **named)
    except (ValueError, OSError) as error:
        fail(command, error)


def run_stage(command: str, config: StageConfig) -> Any:
    """Imports no more than the stage needs (`must shard` runs where there is no torch), and that after a first look."""
    module, function = STAGE_FUNCTIONS[command].split(":")
    with ending_on_sigterm(command):
        first_look(command, config)
        try:
            return getattr(importlib.import_module(module), function)(config)
        except ModuleNotFoundError as error:  # a small installation, or the wrong image
            if (error.name or "must").split(".")[0] == "must":
                raise
            raise ValueError(
                f"the package {error.name} is not installed here; install it with: pip install 'must-clip[all]', "
                "or take the image that has it (docs/containers.md)"
            ) from None


@contextmanager
def ending_on_sigterm(command: str) -> Iterator[None]:
    """SIGTERM ends the stage with exit code 75: nothing half-written is left, and the same command can be run again.

    In a container the stage is the first process, which the kernel does not end by a signal it did not ask for. Stages
    that save their state take the signal over while they run.
    """

    def stop(number: int, frame: object) -> None:
        print(f"must {command}: stopped by SIGTERM; run the same command again to go on", file=sys.stderr)
        raise SystemExit(PREEMPTED)

    if threading.current_thread() is not threading.main_thread():  # only that one may handle signals
        yield
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def run_index(options: dict[str, Any]) -> None:
    from must.data.index import show, verify

    {"show": show, "verify": verify}[options["action"]](options["uri"])


def read_config(command: str, flags: dict[str, Any]) -> StageConfig:
    file = flags.pop("config_file", None)
    stage = STAGES[command]
    base: dict[str, Any] = {}
    if stage is TrainConfig:
        from_file = read_yaml(stage, file) if file else {}
        load(stage, flags, file)  # what is wrong with the values is said before any file is looked for
        base = train_preset({**from_file, **flags})
    return load(stage, flags, file, base)


def train_preset(values: dict[str, Any]) -> dict[str, Any]:
    """The preset's settings for the model, which the classifier file names unless --model does; `auto` if none is
    named."""
    if values.get("preset") in (None, "", "auto"):
        from must.train.auto import auto

        return auto(values)
    from must.model.classifier import read_header
    from must.train.presets import preset

    model = values.get("model") or (read_header(values["classifier"])["model"] if values.get("classifier") else "")
    return preset(values["preset"], model)


def fail(command: str, error: Exception) -> NoReturn:
    """One line and exit code 2 for the user's error, 75 for what may work later.

    A bug goes on as what it is, with its traceback.
    """
    later = isinstance(error, LaterError)
    if not later and not is_users(error):
        raise error
    if os.environ.get("RANK", "0") != "0":
        time.sleep(OTHERS_WAIT)
    print(f"must {command}: {printable(message(error), LONGEST)}", file=sys.stderr)
    raise SystemExit(PREEMPTED if later else 2)


def end_with_parent() -> None:
    """torchrun's processes are to end with it, however it ends: else they would train on beside those of a retry."""
    if sys.platform == "linux":
        set_signal_of_parents_death = 1  # PR_SET_PDEATHSIG
        ctypes.CDLL(None).prctl(set_signal_of_parents_death, signal.SIGKILL)


def is_users(error: Exception) -> bool:
    """Our own code raises ValueError for wrong input alone; one from a library's depths is a bug of ours.

    An error of a loader process arrives with its traceback as text.
    """
    if isinstance(error, OSError):
        return True
    files = re.findall(r'File "([^"]+)", line', str(error))
    if not files:
        files = [frame.filename for frame in traceback.extract_tb(error.__traceback__)]
    return Path(files[-1]).is_relative_to(Path(must.__file__).parent)


def message(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    text = str(error).strip()
    if "Original Traceback" in text:
        text = text.splitlines()[-1].removeprefix("ValueError: ")
    return " ".join(text.split())


class OneLineParser(argparse.ArgumentParser):
    """Says what is wrong in one line, with the nearest flag; argparse itself prints all of a stage's flags first."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        namespace, rest = super().parse_known_args(args, namespace)
        if rest:
            wrong = next((word for word in rest if word.startswith("-")), rest[0]).split("=")[0]
            near = self.nearest(wrong)
            self.error(f"{wrong}: unknown{f'; did you mean {near}?' if near else ''}")
        return namespace, rest

    def nearest(self, wrong: str) -> str:
        """The flag that was meant, perhaps: written with underscores, cut short, or misspelt; else ''."""
        flags = [flag for flag in self._option_string_actions if flag.startswith("--")]
        wrong = wrong.replace("_", "-")
        whole = [flag for flag in flags if flag == wrong] or [flag for flag in flags if flag.startswith(wrong)]
        return " or ".join(whole if wrong.strip("-") else []) or "".join(difflib.get_close_matches(wrong, flags, n=1))

    def error(self, message: str) -> NoReturn:
        print(f"{self.prog}: {message} ({self.prog} --help lists what there is)", file=sys.stderr)
        raise SystemExit(2)


def build_parser() -> argparse.ArgumentParser:
    parser = OneLineParser(
        prog="must",
        description=must.__doc__,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"must {must.__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, stage in STAGES.items():
        command = commands.add_parser(
            name,
            help=stage.summary,
            description=stage.summary,
            epilog=f"example:\n  {stage.example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,  # --epoch would be --epochs today, and an error once there is an --epoch-something
        )
        add_flags(command, stage)
        command.add_argument(
            "--config",
            dest="config_file",
            metavar="FILE.yaml",
            default=None,
            help="these parameters as a YAML file; flags win",
        )
    index = commands.add_parser("index", help="Show or verify a folder of shards.")
    index.add_argument("action", choices=("show", "verify"))
    index.add_argument("uri", metavar="URI", help="folder of shards made by `must shard`")
    return parser
