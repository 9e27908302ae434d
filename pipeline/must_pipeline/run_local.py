"""Runs the compiled DAG on this machine, each stage as a subprocess of this interpreter: must-pipeline run."""

import argparse
import builtins
import io
import os
import re
import shlex
import signal
import subprocess
import sys
import time
import warnings
from contextlib import AbstractContextManager, redirect_stdout, suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml

import must
import must_components
from must.base.errors import UserError
from must.base.lock import Kind, locked
from must.base.parameters import read_mapping
from must.base.processes import make_child_environment
from must.base.program import handling
from must_pipeline.compile import check_parameters, load_documents, read_compiled

# For PYTHONPATH: the stages import must from here, so it need not be installed.
SOURCES = [str(Path(package.__file__ or "").parent.parent) for package in (must, must_components)]
RESULTS = {"report": "report, for a browser", "bundle": "adapted model", "onnx": "ONNX model", "reasons": "the gate"}
RUN_LOCK = Kind("must-pipeline run", "--output", ".run.lock")


def main(options: argparse.Namespace) -> None:
    started = time.monotonic()
    os.environ["MUST_RUN_AGAIN"] = shlex.join(["must-pipeline", "run", *sys.argv[1:]])  # for the summary of a failure
    values = {"work_uri": str(options.output.resolve())}
    values |= read_mapping(options.parameters, f"--parameters {options.parameters}")
    parameters = check_parameters(read_compiled(options.pipeline), values)
    options.output.mkdir(parents=True, exist_ok=True)
    with locked(str(options.output), RUN_LOCK):
        artifacts = run_local(options.pipeline, parameters, options.output)
    print(summarize_artifacts(artifacts, time.monotonic() - started))


def run_local(pipeline: Path, parameters: dict[str, Any], output: Path) -> dict[str, Path]:
    """Runs the compiled pipeline; returns the paths of its artifacts by name. Raises ValueError: a stage failed."""
    from kfp import components, local

    replace_runner(stages := Stages())
    dag = components.load_component_from_text(make_local_spec(pipeline))
    warnings.filterwarnings("ignore", message=r"Task '.*': settings \[.*\] have no effect")  # display names
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [*SOURCES, os.environ.get("PYTHONPATH")]))
    os.environ.setdefault("PYTHONUNBUFFERED", "1")  # a stage's lines show when they are printed
    (root := output / "runs").mkdir(parents=True, exist_ok=True)
    local.init(runner=local.SubprocessRunner(use_venv=False), pipeline_root=str(root.resolve()))
    previous, own_print = set(root.glob("*")), builtins.print
    try:
        kfps_log = redirect_stdout(io.StringIO())
        with stages.stopping(signal.SIGTERM), stages.stopping(signal.SIGINT), kfps_log:
            dag(**parameters)
    except RuntimeError as error:
        said = f"the stage '{stages.failed[-1]}' failed; its own message is above" if stages.failed else str(error)
        raise UserError(said) from None
    finally:
        builtins.print = own_print  # kfp has one that indents, which the threads of a loop leave there
    (run,) = set(root.glob("*")) - previous
    (latest := output / "latest").unlink(missing_ok=True)
    latest.symlink_to(run.relative_to(output))
    return {path.name: path for path in latest.glob("*/*")}


class Stages:
    """The running stages, each in a process group of its own. They end before this program does, which kfp's own
    function does not care for. Their lines go to the standard output as it was when this was made."""

    def __init__(self) -> None:
        self.output, self.running = sys.stdout, set[subprocess.Popen[str]]()
        self.failed, self.stopped = list[str](), False

    def run(self, command: list[str], environment: dict[str, str]) -> bool:
        """Runs a stage to its end; prints its name and its output. Returns whether it succeeded."""
        if self.stopped:  # a loop's next part, in another thread
            return False
        name = next((after for word, after in pairwise(command) if word == "must_components.run"), "?")
        self.output.write(f"\n== {name} ==\n")
        with subprocess.Popen(
            [sys.executable if word == "python3" else word for word in command], process_group=0, text=True,
            env=make_child_environment() | environment, errors="replace",
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        ) as process:  # fmt: skip
            assert process.stdout
            self.running.add(process)
            if self.stopped:  # since the first line
                os.killpg(process.pid, signal.SIGTERM)
            try:
                for line in process.stdout:
                    self.output.write(line)
                    self.output.flush()
            finally:
                self.output.write(process.stdout.read())  # when it was stopped: it may have saved its state
                self.running.remove(process)
        self.failed += [name] if process.returncode else []
        return process.returncode == 0

    def stopping(self, number: int) -> AbstractContextManager[None]:
        """The signal asks the stages to end, then goes to the program's own handler; a second one ends them."""
        then: Any = signal.getsignal(number)
        if not callable(then):  # the shell ignores Ctrl-C for a command that ends with &
            then = signal.default_int_handler

        def stop(number: int, frame: object) -> None:
            for process in list(self.running):
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL if self.stopped else signal.SIGTERM)
            if not self.stopped:
                self.stopped = True
                then(number, frame)

        return handling(number, stop)


def replace_runner(stages: Stages) -> None:
    """kfp's own runner of subprocesses takes no command of an image, and leaves its processes behind."""
    from kfp.local import status, subprocess_task_handler

    def make_handler(full_command: list[str], env_vars: dict[str, str], **others: Any) -> Any:
        ended = {True: status.Status.SUCCESS, False: status.Status.FAILURE}
        return argparse.Namespace(run=lambda: ended[stages.run(full_command, env_vars)])

    subprocess_task_handler.SubprocessTaskHandler = make_handler


def make_local_spec(pipeline: Path) -> str:
    """The pipeline's YAML without retries, except that training is retried at once, from its checkpoint. In conditions
    an output is written TASK--OUTPUT: kfp looks for no other form, if the output is not called Output (2.17.3)."""
    spec, *platform = load_documents(pipeline.read_text())
    for executor in spec["deploymentSpec"]["executors"].values():
        container = executor["container"]
        container["env"] = [variable for variable in container.get("env", []) if variable["name"] != "MUST_RETRIES"]
    for component in [spec["root"], *spec["components"].values()]:
        for name, task in component.get("dag", {}).get("tasks", {}).items():
            policy, trigger = task.pop("retryPolicy", None), task.get("triggerPolicy", {})
            if policy and name == "train":
                task["retryPolicy"] = {"maxRetryCount": policy["maxRetryCount"], "backoffDuration": "0s"}
            if "condition" in trigger:
                trigger["condition"] = re.sub(r"(pipelinechannel--[\w-]+)-(\w+)", r"\1--\2", trigger["condition"])
    return yaml.safe_dump_all([spec, *platform])


def summarize_artifacts(artifacts: dict[str, Path], seconds: float) -> str:
    """The text that is printed at the end."""
    made = {name: path for name, path in artifacts.items() if name != "onnx" or path.is_dir()}  # else it says why not
    places = [f"  {title:22} {os.path.relpath(made[name])}" for name, title in RESULTS.items() if name in made]
    return "\n".join([f"\nThe DAG ran in {seconds:.0f} s.", *places])
