"""The cache of remote shards: bounded, shared by processes, never a half or wrong shard, whatever is killed when."""

import fcntl
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from must.base import storage
from must.base.processes import close
from must.config import EvaluateConfig, TrainConfig
from must.data.augment import TrainViews
from must.data.format import Shard, load_index
from must.data.loader import GlobalBatches, TrainDataset, train_batches
from must.data.reader import SPARE, ShardCache, ShardPrefetcher, ShardReader, open_reader
from must.evaluation.evaluate import evaluate
from must.training.trainer import train
from tests.common import until
from tests.data.augment.test_views import SETTINGS
from tests.data.shards.test_shard import sharded
from tests.data.shards.test_shard_gcs import upload
from tests.evaluation.digits import digits
from tests.stores import Server

FAULTS = ["", "503", "", "cut", "", "", "429", "slow", "lost"]
FORK = multiprocessing.get_context("fork")


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """12 shards of 5 images."""
    folder = tmp_path_factory.mktemp("shards")
    sharded(folder, 60, samples_per_shard=5)
    return folder / "out"


def cache_for(folder: Path, shards: Path, count: float) -> ShardCache:
    """With room for `count` shards."""
    return ShardCache(folder, int(count * max(shard.bytes for shard in load_index(str(shards)).shards)))


def look(cache: ShardCache, uri: Path | str, shard: Shard) -> None:
    file = cache.open(str(uri), shard)
    assert os.pread(file, shard.bytes + 1, 0) == storage.read_bytes(storage.join(uri, shard.name))
    close(file)


def held(cache: ShardCache, shards: Path) -> list[int]:
    """Numbers of the shards that lie in the cache."""
    names = [shard.sha256 for shard in load_index(str(shards)).shards]
    return [n for n, name in enumerate(names) if (cache.folder / f"{name}.tar").exists()]


def in_processes(*functions: Callable[[], None]) -> list[int | None]:
    """Their exit codes, each of a process of its own."""
    processes = [FORK.Process(target=function) for function in functions]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    return [process.exitcode for process in processes]


def test_a_folder_may_be_deleted_in_a_download(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache, shard = cache_for(tmp_path / "cache", shards, 3.5), load_index(str(shards)).shards[0]
    with monkeypatch.context() as patch:
        original = ShardCache.fill

        def fill(*given: Any) -> bool:
            whole = original(*given)
            shutil.rmtree(cache.folder)
            return whole

        patch.setattr(ShardCache, "fill", fill)
        with pytest.raises(storage.TransientError, match="was deleted while it was in use; run the same command again"):
            look(cache, shards, shard)
    look(cache_for(cache.folder, shards, 3.5), shards, shard)


def test_the_least_recently_used_shard_goes_first(shards: Path, tmp_path: Path) -> None:
    cache, all_shards = cache_for(tmp_path, shards, 3.5), load_index(str(shards)).shards
    for number in (0, 1, 2, 0, 3):
        look(cache, shards, all_shards[number])
    assert held(cache, shards) == [0, 2, 3]
    assert sum(file.size for file in cache.files()) <= cache.limit


def test_a_shard_that_any_process_reads_stays(shards: Path, tmp_path: Path) -> None:
    cache, (first, second, third, *_) = cache_for(tmp_path, shards, 2.5), load_index(str(shards)).shards
    mine = cache.open(str(shards), first)
    ready, done = FORK.Event(), FORK.Event()

    def other() -> None:
        assert cache.open(str(shards), second) is not None
        ready.set()
        done.wait()
        os.kill(os.getpid(), signal.SIGKILL)  # the system lets go of what a killed process held

    process = FORK.Process(target=other)
    process.start()
    assert ready.wait(60)
    assert cache.open(str(shards), third) is None
    assert held(cache, shards) == [0, 1]
    done.set()
    process.join()
    look(cache, shards, third)
    assert held(cache, shards) == [0, 2]
    close(mine)


def test_a_forked_process_does_not_hold_what_its_parent_held(shards: Path, tmp_path: Path) -> None:
    cache, (_, second, *_) = cache_for(tmp_path, shards, 1.5), load_index(str(shards)).shards
    reader = ShardReader(str(shards), "train", cache)
    image = reader.image(0)
    ready, done = FORK.Event(), FORK.Event()

    def child() -> None:
        ready.set()
        done.wait()
        assert reader.image(0) == image  # from a file of its own

    process = FORK.Process(target=child)
    process.start()
    assert ready.wait(60)  # a child that has not run yet holds the lock
    assert cache.open(str(shards), second) is None
    reader._close(0)
    look(cache, shards, second)
    done.set()
    process.join()
    assert process.exitcode == 0


def test_a_killed_download_is_never_used(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache, shard = cache_for(tmp_path, shards, 1.5), load_index(str(shards)).shards[0]

    def half(uri: str, file: storage.Writable) -> None:
        data = storage.read_bytes(uri)
        file.write(data[: len(data) // 2])
        file.file.flush()  # type: ignore[attr-defined]
        os.kill(os.getpid(), signal.SIGKILL)

    with monkeypatch.context() as patch:
        patch.setattr(storage, "copy", half)
        assert in_processes(lambda: look(cache, shards, shard)) == [-signal.SIGKILL]
    assert held(cache, shards) == [] and list(tmp_path.glob("*.part"))
    (tmp_path / f"{'0' * 64}.part").write_bytes(bytes(cache.limit))  # another one leaves no room
    look(cache, shards, shard)
    assert not list(tmp_path.glob("*.part"))


def test_a_damaged_file_in_the_cache_is_fetched_again(shards: Path, tmp_path: Path) -> None:
    cache, shard = cache_for(tmp_path, shards, 2), load_index(str(shards)).shards[0]
    (tmp_path / f"{shard.sha256}.tar").write_bytes(b"cut off")
    look(cache, shards, shard)


def test_wrong_bytes_are_refused_and_leave_nothing(bucket_server: Server, shards: Path, tmp_path: Path) -> None:
    shard, uri = load_index(str(shards)).shards[0], bucket_server.uri
    cache = cache_for(tmp_path, shards, 2)
    with pytest.raises(ValueError, match=f"{uri}/{shard.name}: is missing; run `must index verify"):
        cache.open(uri, shard)
    storage.write_bytes(storage.join(uri, shard.name), bytes(shard.bytes))
    with pytest.raises(ValueError, match=r"has changed \(sha256\); run `must index verify"):
        cache.open(uri, shard)
    assert [path.name for path in tmp_path.iterdir()] == ["lock"]


def test_too_little_room_is_said_up_front(
    bucket_server: Server, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload(shards, bucket_server.uri)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("MUST_CACHE_GB", "1e-6")
    with pytest.raises(ValueError, match=r"the 12 shards that are shuffled together take up to .* room for 1e-06 GB"):
        open_reader(bucket_server.uri, "train", window=16)
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="cannot be written"):
        ShardCache(tmp_path / "file", 10**9)
    huge = Shard("x.tar", "train", 1, 10**18, "", "", 0)
    with pytest.raises(ValueError, match=r"take up to 2e\+09 GB, and there is room for [\d.]+ GB"):
        ShardCache(tmp_path, 10**20).check([huge, huge], 4)


def test_a_running_download_is_not_counted_as_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk has room for one of two; the first one has its size and no bytes yet. A killed write goes."""
    (tmp_path / ".tmp-killed").touch()
    os.utime(tmp_path / ".tmp-killed", (0, 0))
    cache, usage, size = ShardCache(tmp_path, 10**12), shutil.disk_usage(tmp_path), 10**8
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=SPARE + size))
    with (tmp_path / "a.part").open("wb") as first, (tmp_path / "b.part").open("wb") as second:
        fcntl.flock(first, fcntl.LOCK_EX)
        assert cache.make_room(size, first) and not cache.make_room(size, second)
    assert not (tmp_path / ".tmp-killed").exists()


def test_processes_share_a_cache_smaller_than_the_split(bucket_server: Server, shards: Path, tmp_path: Path) -> None:
    """Four processes read everything in different orders from a failing server, with room for a third of it."""
    upload(shards, bucket_server.uri)
    expected = ShardReader(str(shards), "train")
    images = [expected.image(number) for number in range(60)]
    cache = cache_for(tmp_path, shards, 4.5)
    bucket_server.faults.plan = FAULTS
    sizes = FORK.Queue()

    def read(seed: int) -> None:
        reader = ShardReader(bucket_server.uri, "train", cache, keep_open=1)
        largest = 0
        for shard in np.random.default_rng(seed).permutation(12):
            for number in range(shard * 5, shard * 5 + 5):
                assert reader.image(number) == images[number]
            with cache.exclusive():
                largest = max(largest, sum(file.size for file in cache.files()))
        sizes.put(largest)

    assert in_processes(*(partial(read, seed) for seed in range(4))) == [0] * 4
    assert max(sizes.get() for _ in range(4)) <= cache.limit
    assert all(bucket_server.faults.done[fault] for fault in ("503", "429", "cut", "lost", "slow"))


def test_a_shard_is_downloaded_once_for_all_processes(bucket_server: Server, shards: Path, tmp_path: Path) -> None:
    upload(shards, bucket_server.uri)
    cache, shard = cache_for(tmp_path, shards, 4), load_index(str(shards)).shards[0]
    bucket_server.faults.requests = 0

    def fetch() -> None:
        assert cache.open(bucket_server.uri, shard) is not None

    assert in_processes(*[fetch] * 6) == [0] * 6
    assert bucket_server.faults.requests < 6  # a download is two, and the client asks for the bucket once


def test_what_comes_next_is_there_before_it_is_needed(shards: Path, tmp_path: Path) -> None:
    cache, all_shards = cache_for(tmp_path, shards, 5.5), load_index(str(shards)).shards
    ahead = ShardPrefetcher(cache, str(shards), dict(enumerate(all_shards)).get, ahead=2)
    ahead.use(0, 3)
    until(lambda: all(file.done() for file in ahead.files.values()))
    assert sorted(ahead.files) == held(cache, shards) == [0, 1, 2, 3, 4]  # no further
    assert cache.open(str(shards), all_shards[9]) is None
    ahead.use(3, 5)
    until(lambda: {3, 4, 5, 6} <= set(held(cache, shards)))
    files = list(ahead.files.values())
    ahead.close()
    until(lambda: all(file.done() for file in files))
    for number in range(7, 12):
        look(cache, shards, all_shards[number])


def test_a_reader_opens_few_files_and_goes_on_without_room(bucket_server: Server, shards: Path, tmp_path: Path) -> None:
    upload(shards, bucket_server.uri)
    expected = ShardReader(str(shards), "train", keep_open=3)
    images = [expected.image(number) for number in range(60)]
    assert len(expected._open) == 3
    cache = cache_for(tmp_path, shards, 2.5)
    others = [cache.open(bucket_server.uri, shard) for shard in load_index(str(shards)).shards[:2]]
    reader = ShardReader(bucket_server.uri, "train", cache)
    assert [reader.image(number) for number in range(10, 60)] == images[10:]
    assert held(cache, shards) == [0, 1]
    for file in others:
        close(file)
    assert [reader.image(number) for number in range(60)] == images


# The modules outlive the interpreter's last collection, as those do that a library holds a reference to. Then they lose
# their names before the reader goes.
PROGRAM = """
import ctypes, sys
from must.data.reader import ShardReader
reader = ShardReader(sys.argv[1], "train")
print(len(reader.image(0)) > 0)
for name in ("__main__", "must.data.reader"):
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(sys.modules[name]))
"""


def test_a_program_that_ends_with_an_open_reader_prints_nothing_more(shards: Path) -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM, shards], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "True\n", "")


def test_going_on_reads_only_what_is_still_to_come(
    bucket_server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the last of 15 steps, with windows of 2 of 10 shards: neither images nor shards of the steps before."""
    sharded(tmp_path, 60, samples_per_shard=6)
    upload(tmp_path / "out", bucket_server.uri)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("MUST_CACHE_GB", "none")
    with pytest.raises(ValueError, match=r"^MUST_CACHE_GB: expected a number"):
        open_reader(bucket_server.uri, "train")
    monkeypatch.setenv("MUST_CACHE_GB", "1")
    reader = open_reader(bucket_server.uri, "train", window=2)
    assert reader.cache.limit == 10**9
    order = GlobalBatches(reader.sizes, 4, 1, 0, window=2, first_step=14)
    bucket_server.faults.requests = 0
    (batch,) = train_batches(TrainDataset(reader, TrainViews(*SETTINGS), seed=3), order, 0)
    assert batch.samples.tolist() == [sample for _, sample in next(iter(order))]
    until(lambda: len(list((tmp_path / "must" / "shards").glob("*.tar"))) == 2)  # the second one may still be fetched
    assert bucket_server.faults.requests < 10  # size, bytes and offsets of two shards


@pytest.mark.slow
def test_training_and_evaluation_straight_from_a_bucket(
    bucket_server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    data = digits()
    upload(Path(data.shards), bucket_server.uri)
    bucket_server.faults.plan = FAULTS
    weights, metrics = [], []
    for name, shards in (("local", data.shards), ("remote", bucket_server.uri)):
        settings = {"epochs": 1, "batch_size": 25, "workers": 2, "mask_patch_size": 8, "lr": 0.004}
        train(TrainConfig(shards=shards, classifier=data.classifier, output=str(tmp_path / name), **settings))
        weights.append(load_file(tmp_path / name / "model.safetensors"))
        report = str(tmp_path / f"{name}-report")
        evaluate(EvaluateConfig(model=str(tmp_path / name), shards=shards, output=report))
        metrics.append(json.loads((Path(report) / "metrics.json").read_text()))
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])
    assert metrics[0]["adapted"] == metrics[1]["adapted"]
    assert len(list((tmp_path / "must" / "shards").glob("*.tar"))) == len(list(Path(data.shards).glob("*.tar")))
    assert all(bucket_server.faults.done[fault] for fault in ("503", "429", "cut", "lost"))
