"""What a TrainJob's nodes do, with real ones: the launcher's command, the variables that Trainer sets."""

import os
import shutil
import subprocess
import sys

import pytest

from must.data.format.index import load_index
from must.method.model.bundle import load_bundle, load_description
from must.runtime.places import WorkUri
from must.runtime.training import TrainRequest
from must_components.train_job.launcher import copy_bundle, prepare
from must_components.train_job.manifest import request
from must_pipeline.cluster.config import Cluster
from must_pipeline.cluster.nodes import nodes_of
from tests.evaluation.digits import digits as make_digits
from tests.gcs import free_port


@pytest.mark.slow
def test_nodes_train_from_the_jobs_file_and_leave_a_bundle(tmp_path):
    digits, count = make_digits(), 2
    work = tmp_path / "work"
    shutil.copytree(digits.shards, work / "shards")
    settings = {"batch_size": 50, "workers": 0, "device": "cpu"}
    job = WorkUri(str(work)).job("key")
    _, values = TrainRequest(
        str(work), index_sha256=load_index(digits.shards).sha256, classifier=digits.classifier,
        preset="digits", settings=settings, epochs=1,
    ).job_values()  # fmt: skip
    prepare(job, values, digits.classifier, str(tmp_path / "curves"), {"work_uri": str(work), "key": "key"})
    trainer = request("must-key", nodes_of(Cluster()), job.uri)
    (command,) = [option.command for option in trainer.options if hasattr(option, "command")]
    (arguments,) = [option.args for option in trainer.options if hasattr(option, "args")]
    port = str(free_port())
    nodes = [
        subprocess.Popen(
            [sys.executable, *command[1:], *arguments],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            env=os.environ | {
                "PET_NNODES": str(count), "PET_NODE_RANK": str(rank), "PET_MASTER_ADDR": "127.0.0.1",
                "PET_MASTER_PORT": port, "OMP_NUM_THREADS": "1",
            },
        )
        for rank in range(count)
    ]  # fmt: skip
    texts = [node.communicate(timeout=200)[0] for node in nodes]
    assert [node.returncode for node in nodes] == [0] * count, texts
    copy_bundle(str(work / "jobs" / "key" / "bundle"), str(tmp_path / "model"))
    assert load_description(str(tmp_path / "model")).provenance.processes == count
    load_bundle(str(tmp_path / "model"))
    assert list((tmp_path / "curves").rglob("*tfevents*"))
    assert (work / "checkpoints").is_dir()
