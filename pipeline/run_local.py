"""Runs the compiled DAG on this machine: python pipeline/run_local.py --parameters FILE.yaml --output FOLDER.

Every stage is the same component as on a cluster. It runs as a subprocess of this interpreter, so that no container
engine is needed, or with --runner docker in its own image (docs/containers.md). The parameters file holds the
pipeline's parameters (see pipeline/pipeline.py).
"""

from __future__ import annotations

import argparse
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

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from pipeline.local.console import COLOR, StageOutput
from pipeline.local.docker import docker_runner
from pipeline.local.spec import local_spec
from pipeline.server.parameters import check_parameters, read_mapping


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parameters", type=Path, required=True, help="YAML file with the pipeline's parameters")
    parser.add_argument("--output", type=Path, required=True, help="folder for shards, checkpoints and artifacts")
    parser.add_argument(
        "--pipeline", type=Path, default=ROOT / "pipeline" / "must_pipeline.yaml", help="compiled pipeline to run"
    )
    parser.add_argument("--runner", choices=("subprocess", "docker"), default="subprocess", help="[subprocess]")
    parser.add_argument("--user", default="", metavar="UID:GID", help="docker: user inside the containers [you:0]")
    parser.add_argument(
        "--mount", type=Path, action="append", metavar="PATH", help="docker: one more path to show the containers"
    )
    parser.add_argument("--gpus", action="store_true", help="docker: give the containers this machine's GPUs")
    parser.add_argument("--verbose", action="store_true", help="show the runner's own log, too")
    options = parser.parse_args()
    try:
        started = time.monotonic()
        os.environ["MUST_RUN_AGAIN"] = shlex.join(["python", *sys.argv])  # for the summary of a run that failed
        parameters = {"work_uri": str(options.output.resolve()), **read_mapping(options.parameters, "--parameters")}
        check_parameters(options.pipeline, parameters)
        runner = None
        if options.runner == "docker":
            runner = docker_runner(parameters, options.output, options.user, options.mount, options.gpus)
        artifacts = run_local(options.pipeline, parameters, options.output, options.verbose, runner)
    except ValueError as error:
        print(f"run_local: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    print(summary(artifacts, time.monotonic() - started))


def run_local(
    pipeline: Path, parameters: dict[str, Any], output: Path, verbose: bool = False, runner: Any = None
) -> dict[str, Path]:
    """Runs the compiled pipeline; returns the paths of its artifacts by name. `runner`: kfp's; None for subprocesses.

    Raises:
        ValueError: a stage failed.
    """
    from kfp import components, local

    output.mkdir(parents=True, exist_ok=True)
    dag = components.load_component_from_text(local_spec(pipeline))
    warnings.filterwarnings("ignore", message="You may be attemping to run a task")  # in an image without Python
    warnings.filterwarnings("ignore", message=r"Task '.*': settings \[.*\] have no effect")  # display names
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    os.environ.setdefault("PYTHONUNBUFFERED", "1")  # a stage's lines show when they are printed
    root = output / "runs"
    root.mkdir(exist_ok=True)
    local.init(runner=runner or local.SubprocessRunner(use_venv=False), pipeline_root=str(root.resolve()))
    before = set(root.glob("*"))
    try:
        with contextlib.nullcontext() if verbose else contextlib.redirect_stdout(StageOutput(sys.stdout)):
            dag(**parameters)
    except RuntimeError as error:
        failed = re.findall(r"task failed: '(.*?)'", COLOR.sub("", str(error))) or ["?"]
        raise ValueError(f"the stage '{failed[-1]}' failed; its own message stands above") from None
    (run,) = set(root.glob("*")) - before
    latest = output / "latest"
    latest.unlink(missing_ok=True)
    latest.symlink_to(run.relative_to(output))
    return {path.name: path for path in latest.glob("*/*")}


def summary(artifacts: dict[str, Path], seconds: float) -> str:
    """What a newcomer wants to see at the end."""
    if "onnx" not in artifacts:
        return f"\nNothing new to train on. The DAG ran in {seconds:.0f} s."
    onnx = artifacts["onnx"] / "model.onnx"
    metrics = json.loads((artifacts["details"] / "metrics.json").read_text())
    from must.evaluate.table import table

    promoted = f"not promoted; {shown(artifacts['reasons'])} says why"
    if "promoted" in artifacts:
        promoted = shown(Path(json.loads(artifacts["promoted"].read_text())["registry"]))
    return f"""
{table(metrics)}

The DAG ran in {seconds:.0f} s. What it made:
  report, to open in a browser   {shown(artifacts["details"] / "report.html")}
  adapted model                  {shown(artifacts["bundle"])}
  ONNX model                     {shown(onnx)}
  registry: the new champion     {promoted}
Classify an image with it:
  {shown(Path(sys.executable).with_name("must"))} predict --model {shown(onnx)} IMAGE
"""


def shown(path: Path) -> str:
    return os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path)


if __name__ == "__main__":
    main()
