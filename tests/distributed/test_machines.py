"""Which of several machines this is, by Vertex AI's CLUSTER_SPEC; and two of them that train together."""

import json
import os
import shutil
import subprocess
import sys

import pytest

from must.data.format.index import load_index
from must.method.distributed.machines import machines
from must.method.model.bundle import load_bundle, load_description
from must.runtime.notes import read_notes
from tests.evaluate.digits import digits as make_digits
from tests.gcs import free_port


def spec(pool, index, first="host-0:2222", others=("host-1:2222", "host-2:2222")):
    cluster = {"workerpool0": [first], **({"workerpool1": list(others)} if others else {})}
    return json.dumps({"cluster": cluster, "environment": "cloud", "task": {"type": pool, "index": index}})


def test_without_a_cluster_there_is_one_machine(monkeypatch):
    monkeypatch.delenv("CLUSTER_SPEC", raising=False)
    assert machines().count == 1 and machines().rendezvous == ["--standalone"]
    monkeypatch.setenv("CLUSTER_SPEC", spec("workerpool0", 0, others=()))
    assert machines().count == 1 and machines().rendezvous == ["--standalone"]


@pytest.mark.parametrize("pool, index, number", [("workerpool0", 0, 0), ("workerpool1", 0, 1), ("workerpool1", 1, 2)])
def test_each_machine_knows_its_number_and_the_first_ones_address(monkeypatch, pool, index, number):
    monkeypatch.setenv("CLUSTER_SPEC", spec(pool, index))
    assert machines().rendezvous == [
        "--nnodes=3", f"--node-rank={number}", "--master-addr=host-0", "--master-port=2222"
    ]  # fmt: skip


@pytest.mark.parametrize(
    "text", ["{", "[]", "{}", spec("workerpool1", 5), spec("chief", 0), spec("workerpool0", 0, "a")]
)
def test_anything_else_is_told(monkeypatch, text):
    monkeypatch.setenv("CLUSTER_SPEC", text)
    with pytest.raises(ValueError, match="CLUSTER_SPEC: is not what Vertex AI gives"):
        machines()


@pytest.mark.slow
def test_two_replicas_of_the_component_train_one_model(tmp_path):
    digits = make_digits()
    work = tmp_path / "work"
    shutil.copytree(digits.shards, work / "shards")
    values = {
        "index_sha256": load_index(digits.shards).sha256, "classifier": digits.classifier, "preset": "digits",
        "output": str(tmp_path / "model"), "settings": {"batch_size": 50, "workers": 0, "device": "cpu"}, "init": "",
        "epochs": 1, "processes": "1",
    }  # fmt: skip
    code = (
        f"from must.runtime.training import train_on_replica as t; print('RESULT', t('r', {str(work)!r}, **{values!r}))"
    )
    address = f"127.0.0.1:{free_port()}"
    replicas = [
        subprocess.Popen(
            [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            env=os.environ | {"CLUSTER_SPEC": spec(pool, 0, address, ["other:1"]), "OMP_NUM_THREADS": "1"},
        )
        for pool in ("workerpool0", "workerpool1")
    ]  # fmt: skip
    texts = [replica.communicate(timeout=300)[0] for replica in replicas]
    assert [replica.returncode for replica in replicas] == [0, 0], texts
    assert "RESULT ({}, {'sha256': ''})" in texts[1] and "'sha256': '" in texts[0]
    assert load_description(str(tmp_path / "model")).provenance["processes"] == 2
    load_bundle(str(tmp_path / "model"))
    (note,) = read_notes(str(work), "r")
    assert note.state == "done" and note.result.endswith("images/s") and " on 2 machines" in note.result
