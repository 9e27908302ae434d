"""Runs the compiled DAG on this machine: must-pipeline run --parameters FILE.yaml --output FOLDER.

Every stage is the same component as on a cluster. It runs as a subprocess of this interpreter, so that no container
engine is needed, or with --runner docker in its own image (docs/containers.md). The parameters file holds the
pipeline's parameters (docs/reference/pipeline.md)."""

import contextlib
import json
import os
import re
import shlex
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import must
import must_components
from must.base.errors import UserError
from must.base.files import METRICS_FILE, ONNX_FILE, REPORT_FILE
from must.base.flags import OneLineParser
from must.base.lock import Kind, locked
from must.base.parameters import read_mapping
from must.evaluation.result import read_metrics
from must.evaluation.table import text_table
from must_pipeline.files import COMPILED, nearest
from must_pipeline.local_runner import COLOR, StageOutput, docker_runner, local_spec, treat_outputs_as_data
from must_pipeline.server.parameters import check_parameters

# For PYTHONPATH: the stages import must from here, so it need not be installed.
SOURCE_FOLDERS = [str(Path(package.__file__ or "").parent.parent) for package in (must, must_components)]

RUN_LOCK = Kind("must-pipeline run", "--output", ".run.lock")


def main() -> None:
    parser = OneLineParser(description=__doc__)
    parser.add_argument("--parameters", type=Path, required=True, help="YAML file with the pipeline's parameters")
    parser.add_argument("--output", type=Path, required=True, help="folder for shards, checkpoints and artifacts")
    parser.add_argument(
        "--pipeline", type=Path, default=nearest(COMPILED), help="the compiled pipeline [must_pipeline.yaml]"
    )
    parser.add_argument("--runner", choices=("subprocess", "docker"), default="subprocess", help="[subprocess]")
    parser.add_argument("--user", default="", metavar="UID:GID", help="docker: user inside the containers [you:0]")
    parser.add_argument(
        "--mount", type=Path, action="append", metavar="PATH", help="docker: one more path to show the containers"
    )
    parser.add_argument("--gpus", action="store_true", help="docker: give the containers this machine's GPUs")
    parser.add_argument("--verbose", action="store_true", help="show the runner's own log, too")
    options = parser.parse_args()
    started = time.monotonic()
    os.environ["MUST_RUN_AGAIN"] = restart_command()  # for the summary of a run that failed
    values = read_mapping(options.parameters, f"--parameters {options.parameters}")
    parameters = check_parameters(options.pipeline, {"work_uri": str(options.output.resolve()), **values})
    runner = None
    if options.runner == "docker":
        runner = docker_runner(parameters, options.output, options.user, options.mount, options.gpus)
    options.output.mkdir(parents=True, exist_ok=True)
    with locked(str(options.output), RUN_LOCK):
        artifacts = run_local(options.pipeline, parameters, options.output, options.verbose, runner)
    print(summary(artifacts, time.monotonic() - started))


def restart_command() -> str:
    """The command that started this run, which also resumes it after a failure."""
    script = sys.argv[0].endswith(".py")
    return shlex.join(["python", *sys.argv] if script else ["must-pipeline", "run", *sys.argv[1:]])


def run_local(pipeline: Path, parameters: dict[str, Any], output: Path, verbose: bool, runner: Any) -> dict[str, Path]:
    """Runs the compiled pipeline; returns the paths of its artifacts by name. Raises ValueError: a stage failed.

    `runner`: kfp's; None for subprocesses."""
    from kfp import components, local

    treat_outputs_as_data()
    dag = components.load_component_from_text(local_spec(pipeline))
    warnings.filterwarnings("ignore", message="You may be attemping to run a task")  # in an image without Python
    warnings.filterwarnings("ignore", message=r"Task '.*': settings \[.*\] have no effect")  # display names
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [*SOURCE_FOLDERS, os.environ.get("PYTHONPATH")]))
    os.environ.setdefault("PYTHONUNBUFFERED", "1")  # a stage's lines show when they are printed
    root = output / "runs"
    root.mkdir(parents=True, exist_ok=True)
    local.init(runner=runner or local.SubprocessRunner(use_venv=False), pipeline_root=str(root.resolve()))
    previous = set(root.glob("*"))
    try:
        with contextlib.nullcontext() if verbose else contextlib.redirect_stdout(StageOutput(sys.stdout)):
            dag(**parameters)
    except RuntimeError as error:
        failed = re.findall(r"task failed: '(.*?)'", COLOR.sub("", str(error))) or ["?"]
        raise UserError(f"the stage '{failed[-1]}' failed; its own message is above") from None
    (run,) = set(root.glob("*")) - previous
    latest = output / "latest"
    latest.unlink(missing_ok=True)
    latest.symlink_to(run.relative_to(output))
    return {path.name: path for path in latest.glob("*/*")}


def summary(artifacts: dict[str, Path], seconds: float) -> str:
    """The text that is printed at the end."""
    if "onnx" not in artifacts:
        return f"\nNothing new to train on. The DAG ran in {seconds:.0f} s."
    onnx = artifacts["onnx"] / ONNX_FILE
    metrics = read_metrics(str(artifacts["details"] / METRICS_FILE), "metrics")
    promoted = f"not promoted; {display(artifacts['reasons'])} says why"
    if "promoted" in artifacts:
        promoted = display(Path(json.loads(artifacts["promoted"].read_text())["registry"]))
    return f"""
{text_table(metrics)}

The DAG ran in {seconds:.0f} s. What it made:
  report, to open in a browser   {display(artifacts["details"] / REPORT_FILE)}
  adapted model                  {display(artifacts["bundle"])}
  ONNX model                     {display(onnx)}
  registry: the new champion     {promoted}
Classify an image with it:
  {display(Path(sys.executable).with_name("must"))} predict --model {display(onnx)} IMAGE
"""


def display(path: Path) -> str:
    return os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path)
