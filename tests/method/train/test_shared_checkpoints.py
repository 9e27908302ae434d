"""Two runs on one checkpoints' folder: the second one is refused, and nothing of the first one is touched."""

import os
import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

from must.base import lock, storage
from must.method.distributed.process_group import init_distributed
from must.method.train import checkpoint as checkpoint_module
from must.method.train.checkpoint import CHECKPOINTS_LOCK, Checkpoints, load_state
from must.method.train.trainer import train
from tests.base.test_lock import hold
from tests.method.train.lives import training
from tests.method.train.processes import on_ranks
from tests.method.train.test_checkpoint import state

config = partial(training, epochs=1, batch_size=50, workers=0, checkpoint_every=2, device="cpu")


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != ".train.lock"}


@pytest.mark.slow
def test_a_second_run_is_refused_and_touches_nothing(digits, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint_module, "CHECKPOINTS_LOCK", replace(CHECKPOINTS_LOCK, timeout=0))
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


def test_a_run_that_lost_its_place_writes_nothing_there_and_ends(bucket_server, monkeypatch):
    uri = bucket_server.uri + "/run"
    with lock.locked(uri, CHECKPOINTS_LOCK) as check_lock:
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


def read_on_a_rank(environment, uri, folder):
    """Of each rank: the newest checkpoint at a place, and the copies of it in the folder; or why it is refused."""
    os.environ.update(environment)
    tempfile.tempdir = folder
    checkpoint_module.CHECKPOINTS_LOCK = replace(CHECKPOINTS_LOCK, timeout=0)
    with init_distributed("cpu", 60) as world:
        checkpoints, result = Checkpoints(uri), {}
        try:
            with (
                checkpoint_module.exclusive_checkpoints(checkpoints, world),
                checkpoint_module.newest_checkpoint(checkpoints, world) as path,
            ):
                result["weights"] = load_state(path)["weights"]
                result["copies"] = max(world.gather(len(list(Path(folder).glob("must-*/copy")))))
        except ValueError as error:
            result["refused"] = str(error)
        return world.gather(result)


@pytest.mark.slow
def test_all_processes_of_a_refused_run_end(tmp_path):
    process = hold(tmp_path / "run")
    first, second = on_ranks(2, read_on_a_rank, dict(os.environ), str(tmp_path / "run"), str(tmp_path))
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
    for read in on_ranks(2, read_on_a_rank, dict(os.environ), uri, str(tmp_path)):
        assert read["copies"] == 1 and torch.equal(read["weights"]["a"], state(2)["weights"]["a"])
    assert not list(tmp_path.glob("must-*/copy"))
