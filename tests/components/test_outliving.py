"""Two real nodes whose launcher is killed: training goes on, and the next launcher follows it to its end."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading

import pytest

from must.answers.answers_file import append
from must.data.format import load_index
from must.model.description import load_description
from must.pods.notes import Facts
from must_components.train_job import train_on_nodes
from must_pipeline.cluster import ClusterConfig, GpuPool, Training
from must_pipeline.placement import encode_nodes
from tests.common import until
from tests.components.conftest import start_launcher
from tests.evaluation.digits import digits as make_digits
from tests.gcs import free_port

SETTINGS = {"batch_size": 50, "workers": 0, "device": "cpu", "log_every": 1}
STEPS, EPOCHS = 3, 20  # steps an epoch


class Fleet:
    """Real nodes for the pods of the stand-in API server: a process for each, with the command of its TrainJob. What it
    prints is the pod's log; how it ends is how the pod does."""

    def __init__(self, api):
        self.api, self.processes = api, []
        api.on_start = self.start

    def start(self, api, name):
        port = str(free_port())
        for pod in api.pods[name]:
            (container,) = pod.to_dict()["spec"]["containers"]
            given = {variable["name"]: variable["value"] for variable in container["env"] if "value" in variable}
            meeting = {"PET_NODE_RANK": str(pod.node), "PET_MASTER_ADDR": "127.0.0.1", "PET_MASTER_PORT": port}
            process = subprocess.Popen(
                [sys.executable, *container["command"][1:], *container["args"]],
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                env=os.environ | given | meeting | {"OMP_NUM_THREADS": "1"},
            )  # fmt: skip
            self.processes.append(process)
            threading.Thread(target=self.live, args=(name, pod, process), daemon=True).start()

    def live(self, name, pod, process):
        for line in process.stdout:
            pod.say(line.rstrip("\n"))
        code = process.wait()
        if pod in self.api.pods.get(name, []):
            self.api.exit(name, pod.node, code)


@pytest.fixture
def fleet(api):
    made = Fleet(api)
    yield made
    for process in made.processes:
        process.kill()
        process.wait()


def steps(pod):
    """The numbers of the steps that a pod's log tells of."""
    return [int(line.split("/")[0].split()[-1]) for _, line in list(pod.lines) if line.startswith("step ")]


@pytest.mark.slow
def test_training_goes_on_without_its_launcher_and_the_next_one_follows_it(api, fleet, work, capfd):
    digits = make_digits()
    shutil.copytree(digits.shards, work / "shards")
    values = {
        "index_sha256": load_index(str(work / "shards")).sha256, "classifier": digits.classifier,
        "nodes": encode_nodes(ClusterConfig(gpu=GpuPool(count=0), training=Training(nodes=2, processes="1"))),
        "preset": "digits", "settings": SETTINGS, "epochs": EPOCHS, "answers": str(work / "answers.jsonl"),
    }  # fmt: skip
    picture = next(digits.images.glob("train/*/*.png"))
    answer = {"image": picture.name, "sha256": hashlib.sha256(picture.read_bytes()).hexdigest()}
    append(work / "answers.jsonl", answer | {"label": picture.parent.name, "sampled": "random"})
    first = start_launcher(api, work, **values)
    until(lambda: api.pods and steps(next(iter(api.pods.values()))[0]), first.communicate, process=first)
    ((name, pods),) = api.pods.items()
    first.send_signal(signal.SIGKILL)
    first.communicate()
    killed_at = steps(pods[0])[-1]
    until(lambda: steps(pods[0])[-1] > killed_at + STEPS)  # nobody waits for it
    print(f"killed at step {killed_at}, trained on alone at least to step {steps(pods[0])[-1]}, of {EPOCHS * STEPS}")
    output = work.parent / "second"
    train_on_nodes(Facts(), str(work), bundle=str(output), **values)
    assert f"following the TrainJob {name}" in capfd.readouterr().out and len(api.created) == 1
    log = (output / "train_log.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in log] == list(range(EPOCHS * STEPS))  # none twice, none missing
    assert not any("going on after" in line for _, line in pods[0].lines)  # one life
    provenance = load_description(str(output)).provenance
    assert provenance.processes == 2 and provenance.memory.answers == 1
    tables = ["copies.csv", "folders.csv", "predictions.csv"]  # the images are in folders of their classes
    assert sorted(path.name for path in work.glob("labels/*/*.csv")) == tables
