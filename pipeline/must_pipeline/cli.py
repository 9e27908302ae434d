"""must-pipeline compile | submit | schedule | run | files: the commands of the Kubeflow pipeline, and their flags.

--help needs no package that a command does."""

import argparse
import importlib
import os
import sys
from collections.abc import Callable
from pathlib import Path

from must.api.cli import OneLineParser
from must.base.console import attach
from must.base.errors import MustError
from must.base.lock import HeldError
from must.base.program import HELD, INTERRUPTED, PREEMPTED, WRONG_INPUT, format_error
from must_pipeline.files import CLUSTER, COMPILED, find_nearest_file

HELP = {
    "compile": """Compiles the pipeline for a cluster.

Upload the file in Kubeflow Pipelines, or give it to must-pipeline submit or must-pipeline schedule.""",
    "submit": """Starts one run, of --parameters FILE.yaml, or with --again RUN_ID the same as a run before.

The compiled pipeline is uploaded as a new version if its content is new. A run that failed is started again with the
same parameters; finished stages are at work_uri, so it resumes from there.""",
    "schedule": """Scheduled retraining.

    must-pipeline schedule apply schedule.yaml     make it, or bring it up to date
    must-pipeline schedule list
    must-pipeline schedule pause|resume|delete NAME

A schedule is identified by its name: applying the same file again changes nothing. Each run uses the newest version of
the pipeline (before Pipelines 2.17: the one that was applied), one run at a time, and missed runs are not repeated.""",
    "run": """Runs the compiled pipeline on this machine: must-pipeline run --parameters FILE.yaml --output FOLDER.

Every stage is the same component as on a cluster, and runs as a subprocess of this interpreter. The parameters file
holds the pipeline's parameters (docs/reference/pipeline.md).""",
    "files": """Copies the example files to a folder, to be changed there: must-pipeline files FOLDER.

cluster.yaml (every key explained), clusters/ (an example for each platform), run.yaml (what a run is to do),
schedule.yaml, and deploy/ (accounts and more, for kubectl apply -k). A file that is there already is left alone.""",
}


def parse(command: str) -> argparse.Namespace:
    """The options of a command, from sys.argv."""
    parser = OneLineParser(description=HELP[command])
    FLAGS[command](parser)
    return parser.parse_args()


def add_compile(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--cluster", type=Path, default=find_nearest_file(CLUSTER), help="your cluster's file [cluster.yaml]"
    )
    output = Path(COMPILED.name)
    parser.add_argument("--output", type=Path, default=output, help="the compiled pipeline [must_pipeline.yaml]")


def add_pipeline(parser: argparse.ArgumentParser) -> None:
    text = "the compiled pipeline [must_pipeline.yaml]; must_label.yaml labels images"
    parser.add_argument("--pipeline", type=Path, default=find_nearest_file(COMPILED), help=text)


def add_submit(parser: argparse.ArgumentParser) -> None:
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--parameters", type=Path, metavar="FILE", help="YAML file with the run's parameters")
    source.add_argument("--again", metavar="RUN_ID", help="pipeline version and parameters of this run")
    add_pipeline(parser)
    parser.add_argument("--pipeline-name", default="", help="the uploaded pipeline's name [must, or must-label]")
    parser.add_argument("--experiment", default="must", help="the group of runs it belongs to [must]")
    parser.add_argument("--name", default="", help="the run's name")
    parser.add_argument(
        "--wait", action="store_true", help="until it is over, then print its summary; exit code 1 if it fails"
    )
    parser.add_argument(
        "--restarts", type=int, default=2, metavar="N",
        help="with --wait: times a run that was stopped, but not by a person, is started again [2]",
    )  # fmt: skip
    add_server(parser)


def add_schedule(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("action", choices=("apply", "list", "pause", "resume", "delete"))
    parser.add_argument("what", nargs="?", metavar="FILE|NAME", help="apply: the schedule's file; else its name")
    add_pipeline(parser)
    add_server(parser)


def add_run(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--parameters", type=Path, required=True, help="YAML file with the pipeline's parameters")
    parser.add_argument("--output", type=Path, required=True, help="folder for shards, checkpoints and artifacts")
    add_pipeline(parser)
    parser.add_argument("--verbose", action="store_true", help="show the runner's own log, too")


def add_files(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path)


def add_server(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--cluster", type=Path, default=find_nearest_file(CLUSTER), help="namespace and account [cluster.yaml]"
    )
    group = parser.add_argument_group(
        "the URL of Kubeflow Pipelines, and the credentials",
        "Inside a pod the projected service account token is found by itself.",
    )
    host = os.environ.get("KFP_HOST", "")
    group.add_argument(
        "--host", default=host, metavar="URL", help="such as https://kf.example.com/pipeline [$KFP_HOST]"
    )
    group.add_argument("--token-file", type=Path, metavar="FILE", help="a bearer token; or set $KFP_TOKEN")
    group.add_argument("--iap-client-id", metavar="ID", help="get a Google identity token for this IAP client")
    group.add_argument("--cookie", default=os.environ.get("KFP_COOKIE"), help="an OIDC session's cookie [$KFP_COOKIE]")
    group.add_argument("--header", metavar="NAME=VALUE", help="a header that a proxy in front asks for")
    group.add_argument("--ca-cert", type=Path, metavar="FILE", help="certificates to trust")
    group.add_argument("--namespace", metavar="NAME", help="the profile; cluster.yaml's otherwise")


FLAGS: dict[str, Callable[[argparse.ArgumentParser], None]] = {
    "compile": add_compile, "submit": add_submit, "schedule": add_schedule, "run": add_run, "files": add_files,
}  # fmt: skip


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
