"""Two runs on one checkpoints' folder: the second one is refused, and nothing of the first one is touched."""

import hashlib
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from must.base import lock, storage
from must.base.parameters import load
from must.config import TrainConfig
from must.method.train import checkpoint as checkpoint_module
from must.method.train.checkpoint import CHECKPOINTS as CHECKPOINTS
from must.method.train.checkpoint import Checkpoints
from must.method.train.trainer import train
from tests.base.test_lock import hold

ROOT = Path(__file__).parents[3]


def config(digits, output, **changes):
    values = {"shards": digits.shards, "classifier": digits.classifier, "output": str(output), "preset": "digits"}
    values |= {"epochs": 1, "batch_size": 50, "workers": 0, "checkpoint_every": 2, "device": "cpu"}
    return load(TrainConfig, {**values, **changes})


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(checkpoint_module, "CHECKPOINTS", replace(CHECKPOINTS, patience=0))


def state(step):
    weights = torch.randn(1000, generator=torch.Generator().manual_seed(step))
    return {"weights": weights, "progress": {"step": step}}


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != ".train.lock"}


@pytest.mark.slow
def test_a_second_run_is_refused_and_touches_nothing(digits, tmp_path, impatient):
    train(config(digits, tmp_path))
    place = tmp_path / "checkpoints"
    (place / ".tmp-half").write_bytes(b"what the first run is writing")
    before, process = contents(place), hold(place)
    with pytest.raises(
        ValueError, match=rf"checkpoints is being written by another `must train` \(process {process.pid}"
    ):
        train(config(digits, tmp_path, resume=False))
    assert contents(place) == before
    process.kill()
    process.wait()
    assert train(config(digits, tmp_path)).steps == 3  # at once: the kernel has freed the lock
    assert ".tmp-half" not in contents(place) and not (place / ".train.lock").exists()


@pytest.mark.slow
def test_a_bucket_is_locked_too_and_the_lock_of_a_lost_pod_grows_old(
    digits, tmp_path, bucket_server, monkeypatch, capsys
):
    uri = bucket_server.uri + "/run"
    monkeypatch.setattr(lock, "LOCK_BEAT_S", 0.2)
    with lock.locked(uri, CHECKPOINTS):
        monkeypatch.setattr(lock.socket, "gethostname", lambda: "another-pod")
        with pytest.raises(ValueError, match="being written by another `must train`"):
            train(config(digits, tmp_path / "a", checkpoints=uri))
        assert Checkpoints(uri).steps() == []
    storage.write_bytes(uri + "/.train.lock", json.dumps({"host": "lost-pod", "pid": "1"}).encode())
    monkeypatch.setattr(lock, "DEAD_AFTER", 2.0)
    assert train(config(digits, tmp_path / "a", checkpoints=uri)).steps == 3
    assert "watching its heartbeat for up to 2 s" in capsys.readouterr().out
    assert not storage.exists(uri + "/.train.lock")


def test_a_run_that_lost_its_place_writes_nothing_there_and_ends(bucket_server, monkeypatch):
    uri = bucket_server.uri + "/run"
    with lock.locked(uri, CHECKPOINTS) as check_lock:
        checkpoints = Checkpoints(uri)
        checkpoints.check_lock = check_lock
        checkpoints.save(1, state(1))
        checkpoints.wait()
        storage.write_bytes(uri + "/.train.lock", b'{"who": "the successor"}')
        monkeypatch.setattr(lock, "DEAD_AFTER", -1.0)  # the last beat counts as old
        checkpoints.save(2, state(2))
        with pytest.raises(lock.LockLostError, match="is now held by another `must train`"):
            checkpoints.save(3, state(3))
    assert Checkpoints(uri).steps() == [1]
    assert storage.read_bytes(uri + "/.train.lock") == b'{"who": "the successor"}'


def on_two_ranks(uri, tmp_path):
    tmp_path.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "must.method.distributed.torchrun", "--standalone", "--nproc-per-node=2"]
    command += ["-m", "tests.method.train.shared_place", str(uri), str(tmp_path)]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=ROOT, timeout=120,
        env=os.environ | {"OMP_NUM_THREADS": "1", "TMPDIR": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return [json.loads((tmp_path / f"rank-{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.slow
def test_all_processes_of_a_refused_run_end(tmp_path):
    process = hold(tmp_path / "run")
    first, second = on_two_ranks(tmp_path / "run", tmp_path / "tmp")
    process.kill()
    process.wait()
    assert f"process {process.pid} on" in first["refused"] and "rank 0 cannot lock this folder" in second["refused"]


@pytest.mark.slow
def test_a_machine_makes_one_copy_of_a_remote_checkpoint(bucket_server, tmp_path):
    uri = bucket_server.uri + "/run"
    checkpoints = Checkpoints(uri)
    for step in (1, 2):
        checkpoints.save(step, state(step))
    checkpoints.close()
    whole = hashlib.sha256(state(2)["weights"].numpy().tobytes()).hexdigest()
    for line in on_two_ranks(uri, tmp_path / "tmp"):
        assert (line["copies"], line["weights"]) == (1, whole)
    assert not list((tmp_path / "tmp").glob("must-*/copy"))
