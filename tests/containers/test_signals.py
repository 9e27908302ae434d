"""A container that is stopped: SIGTERM reaches Python, the exit code is the documented one, a retry goes on."""

import re
import signal
import time

from tests.containers.engine import container, engine, image, run

PREEMPTED = 75


def start(name: str, image_name: str, *command: str, data) -> None:
    engine("run", "--detach", "--name", name, *container(data), image(image_name), *command)


def wait_for_line(name: str, pattern: str) -> None:
    deadline = time.monotonic() + 600
    while time.monotonic() < deadline:
        log = engine("logs", name)
        text = log.stdout + log.stderr
        if re.search(pattern, text):
            return
        assert engine("inspect", "--format", "{{.State.Running}}", name).stdout.strip() == "true", text
        time.sleep(0.2)
    raise AssertionError(f"{pattern} did not appear: {text}")


def catches_sigterm(name: str) -> bool:
    """Whether the container's first process has asked for the signal."""
    caught = engine("exec", name, "grep", "SigCgt", "/proc/1/status", check=False).stdout.split()
    return len(caught) == 2 and bool(int(caught[1], 16) >> (signal.SIGTERM - 1) & 1)


def stop(name: str) -> int:
    began = time.monotonic()
    engine("stop", "--time", "180", name)
    assert time.monotonic() - began < 170, "SIGTERM was not heeded; the engine killed the container"
    return int(engine("wait", name).stdout)


def train(output: str, **options) -> list[str]:
    values = {"shards": "/data/shards", "classifier": "/data/classifier.safetensors", "preset": "digits"}
    values |= {"epochs": 5, "batch-size": 50, "log-every": 5, "workers": 1, "output": output} | options
    return ["must", "train"] + [text for name, value in values.items() for text in (f"--{name}", str(value))]


def test_stopped_training_exits_with_75_and_its_retry_goes_on(prepared, name):
    start(name, "must-train", *train("/data/stopped", epochs=8), data=prepared)
    wait_for_line(name, r"step +5/")
    assert stop(name) == PREEMPTED
    assert not (prepared / "stopped" / "model.safetensors").exists()
    retry = run("must-train", *train("/data/stopped", epochs=8), data=prepared)
    assert "going on after step" in retry.stdout and (prepared / "stopped" / "model.safetensors").exists()


def test_processes_under_torchrun_save_too(prepared, name):
    torchrun = ["python", "-m", "must.model.distributed", "--standalone", "--nproc-per-node", "2", "-m"]
    start(name, "must-train", *torchrun, *train("/data/ranks", epochs=20), data=prepared)
    wait_for_line(name, r"step +5/")
    assert stop(name) == PREEMPTED
    log = engine("logs", name)
    assert "stopped by a signal after step" in log.stdout, log.stdout + log.stderr
    assert list((prepared / "ranks" / "checkpoints").glob("step-*"))
    assert not (prepared / "ranks" / "model.safetensors").exists()


def test_a_stage_without_state_ends_at_once_too(prepared, name):
    """A container's first process ignores SIGTERM unless it asks for it: the engine would wait, then kill."""
    names = "STORAGE_EMULATOR_HOST=http://127.0.0.1:9 exec must classifier --classes gs://nobody/answers.yaml"
    start(name, "must-torch", "sh", "-c", f"{names} --model /data/model --output /tmp/x.safetensors", data=prepared)
    deadline = time.monotonic() + 300
    while not catches_sigterm(name):  # the stage has begun; it asks for the class names for minutes
        assert time.monotonic() < deadline
        time.sleep(0.2)
    assert stop(name) == PREEMPTED
    assert "stopped by SIGTERM; run the same command again" in engine("logs", name).stderr
