"""Checkpoints where they are kept: on a disk that fills up, on a bucket that goes away, whatever the clock says."""

import os
import pickle
import tempfile
import time
import warnings
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

from must.base import lock, storage
from must.model.distributed import init_distributed
from must.training import checkpoint as checkpoint_module
from must.training.checkpoint import CHECKPOINTS_LOCK, Checkpoints, DamagedCheckpointError, load_state
from must.training.trainer import train
from tests.base.test_lock import hold
from tests.exporting.conftest import files_up_to
from tests.training.lives import newest_state, training
from tests.training.processes import on_ranks


def state(step, size=1000):
    return {"weights": {"a": torch.full((size,), float(step)), "b": torch.tensor(step)}, "progress": {"step": step}}


def saved(place, *steps, keep=2):
    """Checkpoints of these steps, all of them written."""
    checkpoints = Checkpoints(str(place), keep)
    for step in steps:
        checkpoints.save(step, state(step))
    checkpoints.wait()
    return checkpoints


def newest_step(checkpoints):
    return newest_state(checkpoints)["progress"]["step"]


def names(folder):
    return sorted(path.name for path in Path(folder).iterdir())


@pytest.fixture(params=["local", "gs"])
def place(request, tmp_path):
    return str(tmp_path) if request.param == "local" else request.getfixturevalue("bucket_server").uri + "/run"


def test_the_last_k_stay(place):
    assert saved(place, *range(2, 17, 2)).steps() == [14, 16]
    assert storage.read_bytes(storage.join(place, "LAST")) == b"step-000000016"
    stems = {entry.name.split(".")[0] for entry in storage.list_files(place)}
    assert stems == {"LAST", "step-000000014", "step-000000016"}
    newest = newest_state(Checkpoints(place))
    assert newest["progress"] == {"step": 16} and torch.equal(newest["weights"]["a"], torch.full((1000,), 16.0))


def test_what_is_saved_is_the_moment_of_saving(tmp_path):
    """Training goes on while the state is written: the file must not see it."""
    checkpoints, weights = Checkpoints(str(tmp_path), keep=9), torch.zeros(3_000_000)
    for step in range(1, 4):
        checkpoints.save(step, {"weights": weights, "progress": {}})
        weights += 1
    checkpoints.close()
    for step in range(1, 4):
        assert (load_state(tmp_path / f"step-{step:09d}.pt")["weights"] == step - 1).all()


def test_a_run_that_starts_afresh_leaves_nothing_of_its_former_life(tmp_path):
    """Else the new run's checkpoints would be the oldest ones, and be removed as such."""
    saved(tmp_path, 10, 20, 30, keep=3)
    new = saved(tmp_path, 5, keep=3)
    assert new.steps() == [5] and names(tmp_path) == ["LAST", "step-000000005.json", "step-000000005.pt"]


def test_leftovers_of_a_kill_are_removed(tmp_path):
    (tmp_path / "step-000000003.pt").write_bytes(b"without a description: cut off")
    (tmp_path / ".tmp-abc").write_bytes(b"half a state")
    checkpoints = Checkpoints(str(tmp_path))
    checkpoints.remove_leftovers()
    assert newest_state(checkpoints) is None
    saved(tmp_path, 4)
    assert names(tmp_path) == ["LAST", "step-000000004.json", "step-000000004.pt"]


def test_the_times_of_files_mean_nothing(tmp_path):
    """A clock that jumped: the newest checkpoint looks the oldest, another one comes from the future."""
    saved(tmp_path, 1, 2, 3, keep=3)
    for step, date in [(1, time.time()), (2, time.time() + 10**9), (3, 0.0)]:
        for path in tmp_path.glob(f"step-{step:09d}.*"):
            os.utime(path, (date, date))
    checkpoints = saved(tmp_path, 4, keep=3)
    assert checkpoints.steps() == [2, 3, 4] and newest_step(checkpoints) == 4


def test_a_failed_write_is_told_at_once_and_a_second_one_in_a_row_ends_it(tmp_path, capsys):
    folder, away = tmp_path / "checkpoints", tmp_path / "away"
    checkpoints = saved(folder, 1)
    for step in (2, 4):
        folder.rename(away)
        folder.write_text("a file where the folder was")
        checkpoints.save(step, state(step))
        checkpoints._finish_pending()
        assert capsys.readouterr().err.startswith(f"the checkpoint of step {step} could not be written: ")
        if step == 2:  # the next one makes up for it
            folder.unlink()
            away.rename(folder)
            checkpoints.save(3, state(3))
            checkpoints.wait()
    checkpoints.save(5, state(5))
    with pytest.raises(ValueError, match="cannot be written"):
        checkpoints.save(6, state(6))
    folder.unlink()
    away.rename(folder)
    assert newest_step(Checkpoints(str(folder))) == 3


def test_a_full_disk_leaves_the_older_checkpoints_whole(tmp_path, capsys):
    checkpoints = saved(tmp_path, 1)
    with files_up_to(100_000):
        checkpoints.save(2, state(2, size=100_000))
        with pytest.raises(ValueError, match=r"step-000000002\.pt: larger than a file"):
            checkpoints.close()
    assert "the checkpoint of step 2 could not be written" in capsys.readouterr().err
    assert names(tmp_path) == ["LAST", "step-000000001.json", "step-000000001.pt"] and newest_step(checkpoints) == 1


def test_a_bucket_that_stays_away_ends_it_and_the_older_checkpoints_are_whole(bucket_server, monkeypatch, capsys):
    uri = bucket_server.uri + "/run"
    checkpoints = saved(uri, 1)
    monkeypatch.setattr("must.base.storage.store.RETRY_TIMEOUT", 0.3)
    bucket_server.faults.plan = ["503"]
    checkpoints.save(2, state(2))
    with pytest.raises(storage.UnreachableError, match=r"could not be reached for 0.3 s") as error:
        checkpoints.close()
    assert "\n" not in str(error.value) and "the checkpoint of step 2" in capsys.readouterr().err
    bucket_server.faults.plan = []
    assert newest_step(Checkpoints(uri)) == 1


@pytest.mark.parametrize(
    "damage, warnings_told",
    [
        (lambda pt, _: storage.write_bytes(pt, storage.read_bytes(pt)[:-100]), 1),
        (lambda pt, _: storage.write_bytes(pt, storage.read_bytes(pt)[:-1] + b"x"), 1),
        (lambda pt, _: storage.delete(pt), 1),
        (lambda _, description: storage.write_bytes(description, b'{"step": 2'), 1),
        (lambda _, description: storage.delete(description), 0),  # the write was killed before it
    ],
    ids=["truncated", "other bytes", "no state", "description cut off", "no description"],
)
def test_a_damaged_checkpoint_is_passed_over(place, recwarn, damage, warnings_told):
    saved(place, 1, 2)
    damage(*(storage.join(place, f"step-000000002.{ending}") for ending in ("pt", "json")))
    recwarn.clear()
    warnings.simplefilter("always")  # the same warning twice, too
    assert newest_step(Checkpoints(place)) == 1
    assert ["checkpoint skipped" in str(warning.message) for warning in recwarn] == [True] * warnings_told


@pytest.mark.parametrize("other", [pickle.dumps(Path("x")), [1], {"model": torch.zeros(3)}], ids=str)
def test_another_file_with_the_right_checksum_is_one_line(tmp_path, other):
    path = tmp_path / "step-000000001.pt"
    if isinstance(other, bytes):
        path.write_bytes(other)
    else:
        torch.save(other, path)
    with pytest.raises(DamagedCheckpointError, match=r"step-000000001.pt: is no checkpoint of `must train`; delete it"):
        load_state(path)


def test_a_checkpoint_that_cannot_be_fetched_is_no_damaged_one(bucket_server, monkeypatch):
    """Going on from an older one would throw the newer ones away."""
    uri = bucket_server.uri + "/run"
    listed = saved(uri, 1, 2).steps()
    monkeypatch.setattr(Checkpoints, "steps", lambda self: listed)  # the bucket goes away after the listing
    monkeypatch.setattr("must.base.storage.store.RETRY_TIMEOUT", 0.2)
    bucket_server.faults.plan = ["503"]
    with pytest.raises(storage.UnreachableError):
        newest_state(Checkpoints(uri))


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
    message = rf"checkpoints is being written by another `must train` \(process {process.pid}"
    with pytest.raises(ValueError, match=message):
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
    saved(uri, 1, 2)
    for read in on_ranks(2, read_on_a_rank, dict(os.environ), uri, str(tmp_path)):
        assert read["copies"] == 1 and torch.equal(read["weights"]["a"], state(2)["weights"]["a"])
    assert not list(tmp_path.glob("must-*/copy"))
