"""must-pipeline compile | submit | run: the commands of the Kubeflow pipeline, and their flags.

--help needs no package that a command does."""

import argparse
import importlib
import os
import sys
from pathlib import Path

from must.api.cli import OneLineParser
from must.base.errors import UserError
from must.base.program import WRONG_INPUT, exiting_at_terminal

PACKAGES = ("kfp", "kubernetes", "kfp_server_api", "cronsim")  # of the extra pipeline
COMMANDS = {  # name: (module, what it does, its help)
    "compile": (
        "compile",
        "compile the pipeline for a cluster",
        "Compiles the pipeline for a cluster: a file to upload in Kubeflow Pipelines, or for must-pipeline submit.",
    ),
    "submit": (
        "submit",
        "start a run on Kubeflow Pipelines, once or on a schedule",
        """Starts a run of --parameters FILE.yaml, or with --again RUN_ID the same as a run before.

The compiled pipeline is uploaded as a new version if its content is new. Finished stages are at work_uri, so a run that
is started again goes on from there. With --cron and --name it is a schedule: one run at a time, missed ones are not
repeated; the same command brings it up to date.""",
    ),
    "run": (
        "run_local",
        "run the compiled pipeline on this machine",
        """Runs the compiled pipeline on this machine: must-pipeline run --parameters FILE.yaml --output FOLDER.

Every stage is the same component as on a cluster, and runs as a subprocess of this interpreter. The parameters file
holds the pipeline's parameters (docs/reference/pipeline.md).""",
    ),
}


def parse(command: str) -> argparse.Namespace:
    """The options of a command, from sys.argv."""
    parser = OneLineParser(description=COMMANDS[command][2])
    add = parser.add_argument
    if command != "run":
        add("--cluster", type=Path, metavar="FILE", help="your cluster.yaml; submit refuses a pipeline of another one")
    if command == "compile":
        add("--output", type=Path, help="the compiled pipeline [must_pipeline.yaml, or must_label.yaml]")
        add("--label", action="store_true", help="the second pipeline, which labels images with a promoted model")
        return parser.parse_args()
    compiled = Path("must_pipeline.yaml")
    add("--pipeline", type=Path, default=compiled, metavar="FILE", help=f"what compile has written [{compiled}]")
    add(
        "--parameters", type=Path, required=command == "run", metavar="FILE", help="YAML file with the run's parameters"
    )
    if command == "run":
        add("--output", type=Path, required=True, help="folder for shards, checkpoints and artifacts")
        return parser.parse_args()
    add("--again", metavar="RUN_ID", help="pipeline version and parameters of this run")
    add("--wait", action="store_true", help="follow the run, then print its summary; exit code 1 if it fails")
    add("--name", default="", help="of the run, or of the schedule, by which it is known")
    add("--cron", default="", metavar="TIMES", help="minute hour day month weekday, in UTC; off: remove it; list: all")
    add("--experiment", default="must", help="the group of runs it belongs to [must]")
    host = os.environ.get("KFP_HOST", "")
    add("--host", default=host, metavar="URL", help="of Kubeflow Pipelines [$KFP_HOST; in a pod of its cluster: found]")
    add("--client", type=Path, metavar="FILE", help="YAML file with arguments of kfp.Client, such as existing_token")
    return parser.parse_args()


def main() -> None:
    command = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if command in ("-h", "--help"):
        lines = [f"  must-pipeline {name:10} {text}" for name, (_, text, _) in COMMANDS.items()]
        print("\n".join(["The Kubeflow pipeline. Each command has --help:", "", *lines]))
    elif command not in COMMANDS:
        print(f"must-pipeline: no command '{command}'; there are: {', '.join(COMMANDS)}", file=sys.stderr)
        raise SystemExit(WRONG_INPUT)
    else:
        sys.argv = [f"must-pipeline {command}", *sys.argv[2:]]
        call(command)


def call(command: str) -> None:
    """Runs a command with the program's arguments. For an expected error it prints one line and exits."""
    with exiting_at_terminal(command, "must-pipeline"):
        options = parse(command)
        try:
            importlib.import_module(f"must_pipeline.{COMMANDS[command][0]}").main(options)
        except ModuleNotFoundError as error:
            if (package := (error.name or "").split(".")[0]) not in PACKAGES:
                raise
            raise UserError(f"needs the package {package}: pip install 'must-clip[pipeline]'") from None
        sys.stdout.flush()
