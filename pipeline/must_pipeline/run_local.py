"""Runs the compiled DAG on this machine, each stage as a subprocess of this interpreter: must-pipeline run."""

import argparse
import contextlib
import io
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path
from typing import Any, TextIO

import yaml

import must
import must_components
from must.base.errors import UserError
from must.base.lock import Kind, locked
from must.base.parameters import read_mapping
from must.base.program import BUG, handling
from must.config.work import METRICS_FILE, ONNX_FILE, REPORT_FILE
from must.evaluation.result import make_text_table, read_metrics
from must_pipeline.compile import check_parameters, load_documents, read_compiled

# For PYTHONPATH: the stages import must from here, so it need not be installed.
SOURCE_FOLDERS = [str(Path(package.__file__ or "").parent.parent) for package in (must, must_components)]

COLOR = re.compile(r"\x1b\[[0-9;]*m")
LOG_LINE = re.compile(r"\d\d:\d\d:\d\d\.\d{3} - (INFO|ERROR|WARNING) - (.*)")
STAGE_MARK = "\0"  # before a line of a stage, which may look like one of kfp's
RUN_LOCK = Kind("must-pipeline run", "--output", ".run.lock")


def main(options: argparse.Namespace) -> None:
    started = time.monotonic()
    os.environ["MUST_RUN_AGAIN"] = restart_command()  # for the summary of a run that failed
    values = read_mapping(options.parameters, f"--parameters {options.parameters}")
    values = {"work_uri": str(options.output.resolve())} | values
    parameters = check_parameters(read_compiled(options.pipeline), values)
    options.output.mkdir(parents=True, exist_ok=True)
    with locked(str(options.output), RUN_LOCK):
        artifacts = run_local(options.pipeline, parameters, options.output, False)
    print(summarize_artifacts(artifacts, time.monotonic() - started))


def restart_command() -> str:
    """The command that started this run, which also resumes it after a failure."""
    script = sys.argv[0].endswith(".py")
    return shlex.join(["python", *sys.argv] if script else ["must-pipeline", "run", *sys.argv[1:]])


def run_local(pipeline: Path, parameters: dict[str, Any], output: Path, verbose: bool) -> dict[str, Path]:
    """Runs the compiled pipeline; returns the paths of its artifacts by name. Raises ValueError: a stage failed."""
    from kfp import components, local

    stages = Stages()
    replace_runner(stages)
    mend_conditions()
    dag = components.load_component_from_text(make_local_spec(pipeline))
    warnings.filterwarnings("ignore", message=r"Task '.*': settings \[.*\] have no effect")  # display names
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [*SOURCE_FOLDERS, os.environ.get("PYTHONPATH")]))
    os.environ.setdefault("PYTHONUNBUFFERED", "1")  # a stage's lines show when they are printed
    root = output / "runs"
    root.mkdir(parents=True, exist_ok=True)
    local.init(runner=local.SubprocessRunner(use_venv=False), pipeline_root=str(root.resolve()))
    previous = set(root.glob("*"))
    hangup = contextlib.nullcontext() if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN else None  # nohup
    try:
        with (
            hangup or handling(signal.SIGHUP, stages.stop),
            handling(signal.SIGTERM, stages.stop),
            handling(signal.SIGINT, stages.stop),
            contextlib.nullcontext() if verbose else contextlib.redirect_stdout(StageOutput(sys.stdout)),
        ):
            dag(**parameters)
    except RuntimeError as error:
        failed = re.findall(r"task failed: '(.*?)'", COLOR.sub("", str(error))) or ["?"]
        raise UserError(f"the stage '{failed[-1]}' failed; its own message is above") from None
    (run,) = set(root.glob("*")) - previous
    latest = output / "latest"
    latest.unlink(missing_ok=True)
    latest.symlink_to(run.relative_to(output))
    return {path.name: path for path in latest.glob("*/*")}


class Stages:
    """The running stages, each in a process group of its own. They end before this program does, which kfp's own
    function does not care for."""

    def __init__(self) -> None:
        self.running = set[subprocess.Popen[str]]()
        self.stopped = False

    def run(self, command: list[str], environment: dict[str, str]) -> int:
        """Runs a stage to its end, prints its output, returns its exit code."""
        if self.stopped:  # a loop's next part, in another thread
            return BUG
        command = [sys.executable if word == "python3" else word for word in command]
        process = subprocess.Popen(
            command, env=os.environ | environment, process_group=0, text=True, errors="replace",
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        self.running.add(process)
        if self.stopped:  # since the first line
            os.killpg(process.pid, signal.SIGTERM)
        mark = STAGE_MARK if isinstance(sys.stdout, StageOutput) else ""
        try:
            assert process.stdout
            for line in process.stdout:
                sys.stdout.write(mark + line)  # kfp has replaced `print`
            return process.wait()
        except BaseException:
            for line in process.communicate()[0].splitlines(keepends=True):  # it may have saved its state
                sys.stdout.write(mark + line)
            raise
        finally:
            self.running.remove(process)

    def stop(self, number: int, frame: object) -> None:
        """The handler of SIGTERM, SIGHUP and SIGINT: asks the stages to end; a second signal ends them.
        Raises KeyboardInterrupt: at the first signal."""
        for process in list(self.running):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL if self.stopped else signal.SIGTERM)
        if not self.stopped:
            self.stopped = True
            by = signal.Signals(number)
            raise KeyboardInterrupt("interrupted" if by == signal.SIGINT else f"stopped by {by.name}")


def replace_runner(stages: Stages) -> None:
    """kfp's own runner of subprocesses takes no command of an image, and leaves its processes behind."""
    from kfp.local import status, subprocess_task_handler

    class Handler:
        def __init__(
            self, image: str, full_command: list[str], pipeline_root: str, runner: Any, env_vars: dict[str, str]
        ) -> None:
            self.command, self.environment = full_command, env_vars

        def run(self) -> Any:
            done = stages.run(self.command, self.environment) == 0
            return status.Status.SUCCESS if done else status.Status.FAILURE

    subprocess_task_handler.SubprocessTaskHandler = Handler


def make_local_spec(pipeline: Path) -> str:
    """The pipeline's YAML without retries, except that training is retried at once, from its checkpoint."""
    spec, *platform = load_documents(pipeline.read_text())
    for executor in spec["deploymentSpec"]["executors"].values():
        container = executor["container"]
        container["env"] = [variable for variable in container.get("env", []) if variable["name"] != "MUST_RETRIES"]
    for component in [spec["root"], *spec["components"].values()]:
        for name, task in component.get("dag", {}).get("tasks", {}).items():
            policy = task.pop("retryPolicy", None)
            if policy and name == "train":
                task["retryPolicy"] = {"maxRetryCount": policy["maxRetryCount"], "backoffDuration": "0s"}
    return yaml.safe_dump_all([spec, *platform])


def mend_conditions() -> None:
    """kfp finds an output in a condition only if it is called Output (2.17.3). And before 2.18.1 it puts outputs into a
    condition as they are and evaluates it, so that an output is a program (GHSA-rhjm-6347-5x33): numbers and true or
    false stay as they are; of anything else, which kfp puts between quotes, each character is escaped."""
    import kfp
    from kfp.local.orchestrator.enhanced_dag_orchestrator import ConditionEvaluator

    resolve = ConditionEvaluator._resolve_pipeline_channel
    if resolve.__module__ == __name__:  # already replaced
        return
    evaluates = [int(part) for part in re.findall(r"\d+", kfp.__version__)[:3]] < [2, 18, 1]

    def find(channel: str, store: Any) -> Any:
        task, _, output = channel.removeprefix("pipelinechannel--").rpartition("-")
        try:
            value = store.get_task_output(task, output)
        except (ValueError, KeyError):
            value = resolve(channel, store)
        if value is None or isinstance(value, int | float) or not evaluates:
            return value
        return "".join(f"\\U{ord(character):08x}" for character in str(value))

    ConditionEvaluator._resolve_pipeline_channel = staticmethod(find)


class StageOutput(io.TextIOBase):
    """Replaces stdout: prints each stage's own lines under the stage's name."""

    def __init__(self, target: TextIO) -> None:
        self.target = target
        self.pending = ""
        self.in_runner_text = False
        self.writing = threading.Lock()  # a loop's parts run in threads

    def write(self, text: str) -> int:
        with self.writing:
            self.pending += text
            *lines, self.pending = self.pending.split("\n")
            for line in lines:
                if (output := self.show(COLOR.sub("", line))) is not None:
                    self.target.write(output + "\n")
                    self.target.flush()
        return len(text)

    def flush(self) -> None:
        self.target.flush()

    def show(self, line: str) -> str | None:
        """The text to print for a line, or None."""
        if line.startswith(STAGE_MARK):
            return line.removeprefix(STAGE_MARK) if line.strip(STAGE_MARK).strip() else None
        if match := LOG_LINE.match(line):
            level, text = match.groups()
            self.in_runner_text = "Streamed logs" not in text
            if stage := re.match(r"Executing task '(.*)'", text):
                return f"\n== {stage.group(1)} =="
            return text if level != "INFO" else None
        return None if self.in_runner_text or not line.strip() or set(line) == {"-"} else line


def summarize_artifacts(artifacts: dict[str, Path], seconds: float) -> str:
    """The text that is printed at the end."""
    if "index" not in artifacts:
        return f"\nThe DAG ran in {seconds:.0f} s."
    if "onnx" not in artifacts:
        return f"\nNothing new to train on. The DAG ran in {seconds:.0f} s."
    onnx = artifacts["onnx"] / ONNX_FILE
    metrics = read_metrics(str(artifacts["details"] / METRICS_FILE), "metrics")
    lines = [make_text_table(metrics), f"\nThe DAG ran in {seconds:.0f} s. What it made:"]
    lines += [f"  report, to open in a browser   {display(artifacts['details'] / REPORT_FILE)}"]
    lines += [f"  adapted model                  {display(artifacts['bundle'])}"]
    if not onnx.is_file():
        return "\n".join(["", *lines, f"It is not promoted; {display(artifacts['reasons'])} says why", ""])
    must = display(Path(sys.executable).with_name("must"))
    lines += [f"  ONNX model                     {display(onnx)}"]
    return "\n".join(["", *lines, "Classify an image with it:", f"  {must} predict --model {display(onnx)} IMAGE", ""])


def display(path: Path) -> str:
    return os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path)
