"""Two real nodes whose launcher is killed: training goes on for the next one, and stops by itself when none comes."""

import json
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from must.data.format.index import load_index
from must.method.model.bundle import load_description
from must.runtime import keepalive
from must.runtime.keepalive import keep_alive
from must.runtime.places import WorkUri
from must.runtime.training import job_values
from must_components.train_job import launcher
from must_components.train_job.jobs import Jobs
from must_components.train_job.manifest import request
from must_pipeline.cluster.config import Cluster, GpuPool, Training
from must_pipeline.cluster.nodes import nodes_of
from tests.components.fleet import Fleet
from tests.components.launching import launcher as start_launcher
from tests.evaluation.digits import digits as make_digits

SETTINGS = {"batch_size": 50, "workers": 0, "device": "cpu", "log_every": 1}
STEPS, EPOCHS = 3, 20  # steps an epoch


@pytest.fixture
def fleet(api):
    made = Fleet(api)
    yield made
    made.close()


@pytest.fixture
def digits(work):
    made = make_digits()
    shutil.copytree(made.shards, work / "shards")
    return made


def two_nodes():
    return nodes_of(Cluster(gpu=GpuPool(count=0), training=Training(nodes=2, processes="1")))


def wait_for(condition, process=None):
    while not condition():
        assert process is None or process.poll() is None, process.communicate()
        time.sleep(0.02)


def steps(pod):
    """The numbers of the steps that a pod's log tells of."""
    return [int(line.split("/")[0].split()[-1]) for line in list(pod.lines) if line.startswith("step ")]


@pytest.mark.slow
def test_training_goes_on_without_its_launcher_and_the_next_one_attaches(api, fleet, work, digits, capfd):
    values = {
        "index_sha256": load_index(str(work / "shards")).sha256, "classifier": digits.classifier, "nodes": two_nodes(),
        "preset": "digits", "settings": SETTINGS, "epochs": EPOCHS, "tensorboard_uri": str(work / "curves"),
    }  # fmt: skip
    first = start_launcher(work, subprocess.STDOUT, **values)
    wait_for(lambda: api.pods and steps(next(iter(api.pods.values()))[0]), first)
    ((name, pods),) = api.pods.items()
    first.send_signal(signal.SIGKILL)
    first.communicate()
    killed_at = steps(pods[0])[-1]
    wait_for(lambda: steps(pods[0])[-1] > killed_at + STEPS)  # nobody waits for it
    print(f"killed at step {killed_at}, trained on alone at least to step {steps(pods[0])[-1]}, of {EPOCHS * STEPS}")
    output = work.parent / "second"
    launcher.train_on_nodes(str(work), output=str(output), **values)
    assert f"attached to the TrainJob {name}" in capfd.readouterr().out and len(api.created) == 1
    log = (output / "train_log.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in log] == list(range(EPOCHS * STEPS))  # none twice, none missing
    assert not any("going on after" in line for line in pods[0].lines)  # one life
    assert load_description(str(output)).provenance.processes == 2
    assert list((work / "curves").rglob("*tfevents*"))


@pytest.mark.slow
def test_nodes_whose_launcher_is_gone_save_a_checkpoint_and_stop(
    api, fleet, work, digits, monkeypatch, record_property
):
    monkeypatch.setattr(launcher, "SILENCE", 3.0)
    monkeypatch.setattr(keepalive, "LAUNCHER_HEARTBEAT_S", 0.2)
    _, values = job_values(
        str(work), index_sha256=load_index(str(work / "shards")).sha256, classifier=digits.classifier,
        preset="digits", settings=SETTINGS | {"checkpoint_every": 100_000}, epochs=2000,
    )  # fmt: skip
    job = WorkUri(str(work)).job("key")
    launcher.prepare(job, values, digits.classifier, "", {"work_uri": str(work), "key": "key"})
    Jobs().create(request("must-key", two_nodes(), job.uri))
    pods = api.pods["must-key"]
    with keep_alive(job.heartbeat):
        wait_for(lambda: steps(pods[0]))
    last_sign = time.monotonic()
    wait_for(lambda: all(hasattr(pod, "ended") for pod in pods))
    seconds = time.monotonic() - last_sign
    print(f"{seconds:.1f} s from the last sign to the end of both nodes")
    record_property("seconds from the last sign to the end of both nodes", round(seconds, 1))
    assert [pod.ended for pod in pods] == [75, 75], [pod.lines[-20:] for pod in pods]
    assert any("no heartbeat of the launcher for 3 s" in line for line in pods[0].lines)
    (done,) = [line.split("after step ")[1].split(";")[0] for line in pods[0].lines if "stopped by a signal" in line]
    saved = Path(values["checkpoints"], "LAST").read_text()
    assert int(saved.removeprefix("step-")) == int(done)
