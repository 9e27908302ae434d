"""must-pipeline compile | submit | schedule | run | files: the commands of the Kubeflow pipeline."""

import importlib
import sys

from must.base.console import attach
from must.base.errors import MustError
from must.base.exits import HELD, INTERRUPTED, PREEMPTED, WRONG_INPUT, format_error
from must.base.lock import HeldError
from must_pipeline.arguments import parse

COMMANDS = {
    "compile": ("compile", "compile the pipeline for a cluster"),
    "submit": ("submit", "start a run on Kubeflow Pipelines"),
    "schedule": ("schedule", "retrain on a schedule"),
    "run": ("run_local", "run the compiled pipeline on this machine"),
    "files": ("files", "copy the example files (clusters, schedule, accounts) to a folder"),
}
EXTRA = {"kfp": "pipeline", "kfp_server_api": "submit", "kubernetes": "pipeline"}  # package -> extra


def main() -> None:
    command = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if command in ("-h", "--help"):
        lines = [f"  must-pipeline {name:10} {text}" for name, (_, text) in COMMANDS.items()]
        print("\n".join(["The Kubeflow pipeline. Each command has --help:", "", *lines]))
    elif command not in COMMANDS:
        print(f"must-pipeline: no command '{command}'; there are: {', '.join(COMMANDS)}", file=sys.stderr)
        raise SystemExit(WRONG_INPUT)
    else:
        sys.argv = [f"must-pipeline {command}", *sys.argv[2:]]
        call(command)


def call(command: str, *arguments: str) -> None:
    """Runs a command with `arguments` and the program's own. For an expected error it prints one line and exits."""
    attach()
    program = sys.argv[0].rpartition("/")[2]
    sys.argv[1:1] = arguments
    try:
        options = parse(command)
        importlib.import_module(f"must_pipeline.{COMMANDS[command][0]}").main(options)
        sys.stdout.flush()
    except BrokenPipeError:  # must-pipeline ... | head
        sys.stderr.close()
        raise SystemExit(1) from None
    except KeyboardInterrupt as error:  # with the reason, if it was SIGTERM
        print(f"{program}: {str(error) or 'interrupted'}; run the same command again", file=sys.stderr)
        raise SystemExit(PREEMPTED if "SIGTERM" in str(error) else INTERRUPTED) from None
    except (ModuleNotFoundError, MustError, OSError) as error:
        message = format_error(error)
        if isinstance(error, ModuleNotFoundError):
            package = (error.name or "").split(".")[0]
            if package not in EXTRA:
                raise
            message = f"needs the package {package}: pip install 'must-clip[{EXTRA[package]}]'"
        print(f"{program}: {message}", file=sys.stderr)
        raise SystemExit(HELD if isinstance(error, HeldError) else WRONG_INPUT) from error
