"""Kubeflow's local runners with corrections: a pipeline without pauses, stages' output, and stages in their images."""

from __future__ import annotations

import contextlib
import io
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import yaml

from must.base.errors import UserError
from must.base.storage import is_remote, local
from must_pipeline.files import documents

if TYPE_CHECKING:
    from kfp.local import DockerRunner

COLOR = re.compile(r"\x1b\[[0-9;]*m")
LOG_LINE = re.compile(r"\d\d:\d\d:\d\d\.\d{3} - (INFO|ERROR|WARNING) - (.*)")
WRITTEN = ("work_uri", "registry_uri")  # parameters that name a folder which stages write to
PASSED_ON = ("GOOGLE_CLOUD_PROJECT", "STORAGE_EMULATOR_HOST", "MUST_RUN_AGAIN", "OMP_NUM_THREADS")
CREDENTIALS = "GOOGLE_APPLICATION_CREDENTIALS"
STOP_TIMEOUT = 60  # seconds for a stage to save its state when the run is interrupted


def local_spec(pipeline: Path) -> str:
    """The pipeline's YAML without retries, except that training is retried at once, from its checkpoint."""
    spec, *platform = documents(pipeline.read_text())
    for executor in spec["deploymentSpec"]["executors"].values():
        container = executor["container"]
        container["env"] = [variable for variable in container.get("env", []) if variable["name"] != "MUST_RETRIES"]
    for component in [spec["root"], *spec["components"].values()]:
        for name, task in component.get("dag", {}).get("tasks", {}).items():
            policy = task.pop("retryPolicy", None)
            if policy and name == "train":
                task["retryPolicy"] = {"maxRetryCount": policy["maxRetryCount"], "backoffDuration": "0s"}
    return yaml.safe_dump_all([spec, *platform])


def treat_outputs_as_data() -> None:
    """kfp before 2.18.1 puts outputs into a condition as they are and evaluates it, so that an output is a program
    (GHSA-rhjm-6347-5x33). Numbers and true or false stay as they are; of anything else, which kfp puts between quotes,
    each character is escaped."""
    import kfp

    if [int(part) for part in re.findall(r"\d+", kfp.__version__)[:3]] >= [2, 18, 1]:
        return
    from kfp.local.orchestrator.enhanced_dag_orchestrator import ConditionEvaluator

    resolve = ConditionEvaluator._resolve_pipeline_channel
    if resolve.__module__ != __name__:  # not yet replaced

        def escape(*where: Any) -> Any:
            if (value := resolve(*where)) is None or isinstance(value, int | float):
                return value
            return "".join(f"\\U{ord(character):08x}" for character in str(value))

        ConditionEvaluator._resolve_pipeline_channel = staticmethod(escape)


class StageOutput(io.TextIOBase):
    """Replaces stdout: prints each stage's own lines under the stage's name."""

    def __init__(self, target: TextIO) -> None:
        self.target = target
        self.pending = ""
        self.skipping_json = False
        self.in_runner_text = False
        self.indent = "    "  # the runner's, in front of a stage's lines; longer inside a loop

    def write(self, text: str) -> int:
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
        if match := LOG_LINE.match(line):
            level, text = match.groups()
            self.in_runner_text = "Streamed logs" not in text
            if stage := re.match(r"Executing task '(.*)'", text):
                return f"\n== {stage.group(1)} =="
            return text if level != "INFO" else None
        if (text := line.lstrip(" ")).startswith("[KFP Executor"):  # a stage's first line
            self.indent = line.removesuffix(text)
            self.skipping_json = "Got executor_input" in text
            return None
        stage_line = line.removeprefix(self.indent)
        if self.skipping_json:
            self.skipping_json = stage_line != "}"
            return None
        if self.in_runner_text or not stage_line.strip() or set(line) == {"-"}:
            return None
        return stage_line


def docker_runner(
    parameters: dict[str, Any], output: Path, user: str, mounts: list[Path] | None, gpus: bool
) -> DockerRunner:
    """A runner that mounts the local paths among the parameters, read-only except where stages write.

    Every path has the same name inside and outside. Containers run as `user` ("UID:GID"; by default the user who
    started the run, with group 0), on a read-only file system with a tmpfs at /tmp.
    Raises ValueError: no engine answers."""
    client = connect()
    from docker.types import DeviceRequest, Mount
    from kfp.local import DockerRunner, docker_task_handler

    # Without this a failed stage counts as done: kfp lets the engine remove the container, and treats a missing
    # container as a success.
    docker_task_handler.run_docker_container = run_container
    rootless = any("rootless" in option for option in client.info().get("SecurityOptions") or [])
    environment = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
    read_only, written = [path.resolve() for path in mounts or []], [output.resolve()]
    if key := os.environ.get(CREDENTIALS):
        environment[CREDENTIALS] = key
        read_only.append(Path(key).absolute())
    for name, value in parameters.items():
        if name not in WRITTEN:
            read_only.extend(local_paths(value))
        elif value and not is_remote(value):
            written.append(local(value).absolute())
            written[-1].mkdir(parents=True, exist_ok=True)
    mounted = written + read_only
    read_only = [path for path in read_only if not any(path != p and path.is_relative_to(p) for p in mounted)]
    return DockerRunner(
        mounts=[Mount(str(p), str(p), "bind", p not in written) for p in dict.fromkeys(written + read_only)],
        environment=environment,
        # In a rootless engine the container's root is the user who started the engine.
        user=user or ("0:0" if rootless else f"{os.getuid()}:0"),
        working_dir=str(Path.cwd()),
        read_only=True,
        tmpfs={"/tmp": "exec,mode=1777"},
        shm_size="1g",  # loader processes pass batches through it
        network_mode="host" if "STORAGE_EMULATOR_HOST" in environment else None,
        device_requests=[DeviceRequest(count=-1, capabilities=[["gpu"]])] if gpus else [],
    )


def run_container(client: Any, image: str, command: list[str], volumes: dict[str, Any], **options: Any) -> int:
    """Runs a container to its end, prints its output, removes it; returns its exit code."""
    from docker.errors import ImageNotFound, NotFound

    try:
        client.images.get(image)
    except ImageNotFound:
        try:
            client.images.pull(image)
        except Exception as error:
            raise UserError(f"the image {image} is not here and cannot be pulled; make it: make images") from error
    container = client.containers.run(image, as_first_process(command), volumes=volumes, detach=True, **options)
    try:
        for chunk in container.logs(stream=True, follow=True):
            print(chunk.decode(errors="replace"), end="")
        return container.wait()["StatusCode"]
    except BaseException:  # interrupted: SIGTERM lets the stage save its state
        container.stop(timeout=STOP_TIMEOUT)
        raise
    finally:
        with contextlib.suppress(NotFound):
            container.remove(force=True)


def as_first_process(command: list[str]) -> list[str]:
    """kfp's command, with Python instead of the shell as the container's first process: the shell would not pass
    SIGTERM on, and a stage could not save its state when its container is stopped."""
    return [part.replace("_KFP_RUNTIME=true python3 ", "_KFP_RUNTIME=true exec python3 ") for part in command]


def local_paths(value: Any) -> Iterator[Path]:
    """Existing files and folders that a parameter's value names; for x-{000..099}.tar its folder."""
    if isinstance(value, dict):
        for item in value.values():
            yield from local_paths(item)
    elif isinstance(value, str) and value and "://" not in value.removeprefix("file://"):
        path = local(value).absolute()
        if path.exists() and path != path.parent:
            yield path
        elif "/" in value and path.parent.is_dir() and path.parent != Path("/"):
            yield path.parent


def connect() -> Any:
    import docker

    try:
        client = docker.from_env()
        client.ping()
        return client
    except docker.errors.DockerException as error:
        where = os.environ.get("DOCKER_HOST", "the default socket")
        raise UserError(f"no container engine answers at {where} (DOCKER_HOST): {error}") from None
