"""One run a place: locks of this machine's kernel, and locks in a bucket that live by their owner's heartbeat."""

import json
import os
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from must.base import lock, storage
from must.config import ShardConfig
from must.data.shards import commit
from must.data.shards.build import shard
from must.data.shards.workdir import SHARDS_LOCK as SHARDS
from must.training.checkpoint import CHECKPOINTS_LOCK as CHECKPOINTS
from tests import zoo
from tests.common import until

HOLD = """
import sys
from must.base.lock import Kind, locked
with locked(sys.argv[1], Kind(*sys.argv[2:])):
    print('held', flush=True)
    sys.stdin.read()
"""


def hold(place, kind=CHECKPOINTS, **environment):
    """A process that holds this kind of lock of a local place until it is killed, or until its input ends."""
    command = [sys.executable, "-c", HOLD, str(place), kind.command, kind.flag, kind.name]
    variables = os.environ | environment
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=variables)
    assert process.stdout.readline() == "held\n"
    return process


def test_a_local_lock_names_its_owner_and_is_free_once_that_is_killed(tmp_path):
    impatient = replace(CHECKPOINTS, timeout=0)
    process = hold(tmp_path)
    message = rf"another `must train` \(process {process.pid} on .*--checkpoints"
    with pytest.raises(ValueError, match=message), lock.locked(str(tmp_path), impatient):
        pass
    process.kill()
    process.wait()
    assert (tmp_path / ".train.lock").exists()  # nobody tidied up, and nobody needs to
    with lock.locked(str(tmp_path), impatient):
        pass
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("where", ["local", "bucket"])
def test_two_threads_of_one_process_do_not_both_hold_it(where, tmp_path, bucket_server):
    folder = bucket_server.uri + "/run" if where == "bucket" else str(tmp_path)
    with lock.locked(folder, SHARDS), ThreadPoolExecutor(1) as pool:
        second = pool.submit(lambda: lock.locked(folder, SHARDS).__enter__())
        assert isinstance(second.exception(), lock.HeldError)
        assert storage.exists(f"{folder}/{SHARDS.name}")


def test_the_lock_waits_for_an_owner_that_is_dying(tmp_path):
    process = hold(tmp_path)
    process.stdin.close()  # it ends in its own time
    with lock.locked(str(tmp_path), CHECKPOINTS):
        assert process.wait() == 0


@pytest.fixture
def held(bucket_server, monkeypatch):
    """(lock object, its check) of a lock in a bucket whose heart beats fast."""
    monkeypatch.setattr(lock, "LOCK_BEAT_S", 0.02)
    with ExitStack() as stack:
        check = stack.enter_context(lock.locked(bucket_server.uri + "/run", SHARDS))
        yield bucket_server.uri + "/run/.shard.lock", check


def test_a_living_owner_is_respected_and_notices_another_one(held, monkeypatch):
    uri, check = held
    monkeypatch.setattr("socket.gethostname", lambda: "another-pod")
    monkeypatch.setattr(lock, "held", set())  # as if this were another process
    message = r"being written by another `must shard` \(process \d+ on"
    with pytest.raises(ValueError, match=message), lock.locked(uri.rpartition("/")[0], SHARDS):
        pass
    check()

    def take_over():
        """Again if a beat replaced it: moto compares a write's condition before it writes, not in one step."""
        storage.write_bytes(uri, b"{}")
        time.sleep(0.1)
        check()

    with pytest.raises(ValueError, match="is now held by another"):
        until(take_over)  # with the next beat


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), RuntimeError("raw"), KeyError("odd")])
def test_a_heart_that_misses_a_beat_goes_on(held, monkeypatch, error):
    uri, check = held
    store = storage.find_store(uri)
    write, faults = store.write_bytes, [error, error]

    def fails_twice(*values):
        if faults:
            raise faults.pop()
        return write(*values)

    monkeypatch.setattr(store, "write_bytes", fails_twice)
    until(lambda: not faults)
    before = storage.find_generation(uri)
    until(lambda: storage.find_generation(uri) != before)
    check()


def test_without_a_good_beat_for_too_long_a_new_one_decides(bucket_server, monkeypatch):
    monkeypatch.setattr(lock, "DEAD_AFTER", -1.0)  # any beat is too old, and each check writes one
    uri = bucket_server.uri + "/run/.shard.lock"
    with lock.locked(bucket_server.uri + "/run", SHARDS) as check:
        check()  # the bucket answers, and the lock is ours
        with monkeypatch.context() as patch, pytest.raises(FileNotFoundError, match="/nowhere"):
            patch.setattr(storage.find_store(uri), "write_bytes", lambda *_: Path("/nowhere").stat())
            check()  # nothing is said to be ours
        storage.write_bytes(uri, b"{}")
        with pytest.raises(lock.LockLostError, match="is now held by another `must shard`"):
            check()


def test_a_beat_and_checks_at_the_same_moment_are_one_owner(bucket_server, monkeypatch):
    monkeypatch.setattr(lock, "DEAD_AFTER", -1.0)  # each check writes a beat
    with lock.locked(bucket_server.uri + "/run", SHARDS) as check, ThreadPoolExecutor(8) as pool:
        for finished in [pool.submit(check) for _ in range(40)]:
            finished.result()


def test_a_run_releases_its_own_lock_and_not_its_successors(bucket_server, capsys):
    uri = bucket_server.uri + "/run/.shard.lock"
    for _ in range(2):
        with lock.locked(bucket_server.uri + "/run", SHARDS):
            assert json.loads(storage.read_bytes(uri))["who"]
        assert json.loads(storage.read_bytes(uri)) == lock.RELEASED
    assert "watching" not in capsys.readouterr().out
    with lock.locked(bucket_server.uri + "/run", SHARDS):
        storage.write_bytes(uri, b'{"who": "the successor"}')
    assert storage.read_bytes(uri) == b'{"who": "the successor"}'


ELSEWHERE = {
    "another host": {"host": "another-pod"},
    "another container of that host name": {"pids": "pid:[1]"},
    "another machine, or before it was started again": {"boot": "0"},
}


@pytest.mark.parametrize("where", ["here", *ELSEWHERE])
def test_only_a_process_that_would_be_seen_here_is_known_to_be_dead(bucket_server, monkeypatch, capsys, where):
    monkeypatch.setattr(lock, "identify_machine", lambda: {"host": "pod", "boot": "b", "pids": "pid:[2]"})
    monkeypatch.setattr(lock, "DEAD_AFTER", 0.2)
    monkeypatch.setattr(lock, "LOOK_S", 0.05)
    process = subprocess.Popen(["true"])
    process.wait()
    uri = bucket_server.uri + "/run/.shard.lock"
    owner = lock.BucketLock(uri, SHARDS).identity | {"pid": str(process.pid)} | ELSEWHERE.get(where, {})
    storage.write_bytes(uri, json.dumps(owner).encode())
    with lock.locked(bucket_server.uri + "/run", SHARDS):
        assert ("watching its heartbeat for up to" in capsys.readouterr().out) == (where != "here")


@pytest.mark.parametrize("content", [b"[]", b'{"pid": 1e400, "host": "?"}', b"[" * 100_000, b"\xff"])
def test_a_lock_of_any_content_is_taken_over_when_it_is_old(bucket_server, monkeypatch, content):
    monkeypatch.setattr(lock, "DEAD_AFTER", 0.0)
    storage.write_bytes(bucket_server.uri + "/run/.shard.lock", content.replace(b"?", socket.gethostname().encode()))
    with lock.locked(bucket_server.uri + "/run", SHARDS) as check:
        monkeypatch.setattr(lock, "DEAD_AFTER", 60.0)
        check()


@pytest.mark.parametrize("where", ["local", "bucket"])
def test_an_index_that_another_run_has_written_meanwhile_stays(where, tmp_path, bucket_server, monkeypatch):
    zoo.fill(tmp_path / "in", 3)
    output = bucket_server.uri + "/out" if where == "bucket" else str(tmp_path / "out")
    done = commit.commit_shards

    def too_late(*values):
        result = done(*values)
        storage.write_bytes(f"{output}/index.json", b"the other run's")
        return result

    monkeypatch.setattr(commit, "commit_shards", too_late)
    with pytest.raises(storage.ConflictError, match="written by another program"):
        shard(ShardConfig(source=str(tmp_path / "in"), output=output, workers=1, max_rejected=0.9))
    assert storage.read_bytes(f"{output}/index.json") == b"the other run's"
