"""must-pipeline compile | submit | schedule | run | files: the commands of the Kubeflow pipeline."""

from __future__ import annotations

import importlib
import sys

from must.base.exits import WRONG_INPUT

COMMANDS = {
    "compile": ("compile", "compile the pipeline for a cluster"),
    "submit": ("submit", "start a run on Kubeflow Pipelines"),
    "schedule": ("schedule", "retrain on a schedule"),
    "run": ("run_local", "run the compiled pipeline on this machine"),
    "files": ("files", "copy the example files (clusters, schedule, accounts) to a folder"),
}
EXTRA = {"kfp", "kfp_server_api", "kubernetes"}  # what the extra brings


def main() -> None:
    try:
        run()
        sys.stdout.flush()
    except BrokenPipeError:  # must-pipeline ... | head
        sys.stderr.close()
        raise SystemExit(1) from None


def run() -> None:
    command = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if command in ("-h", "--help"):
        lines = [f"  must-pipeline {name:10} {text}" for name, (_, text) in COMMANDS.items()]
        print("\n".join(["The Kubeflow pipeline. Each command has --help:", "", *lines]))
        return
    if command not in COMMANDS:
        print(f"must-pipeline: no command '{command}'; there are: {', '.join(COMMANDS)}", file=sys.stderr)
        raise SystemExit(WRONG_INPUT)
    sys.argv = [f"must-pipeline {command}", *sys.argv[2:]]
    try:
        module = importlib.import_module(f"must_pipeline.{COMMANDS[command][0]}")
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] not in EXTRA:
            raise
        text = f"{sys.argv[0]}: needs the package {error.name}: pip install 'must-clip[pipeline]'"
        print(text, file=sys.stderr)
        raise SystemExit(WRONG_INPUT) from None
    module.main()
