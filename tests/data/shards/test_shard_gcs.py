"""Sharding from and to a bucket, on a real server that fails now and then."""

import os
import shutil
import signal
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from must.base import lock, storage
from must.data.format import load_index, verify
from tests import zoo
from tests.data.shards.test_shard import run, samples
from tests.data.shards.test_shard import tree as local_tree
from tests.data.shards.test_shard_restart import ELSEWHERE, KILLED_DECODING, command

FAULTS = ["", "", "503", "", "cut", "", "429", "lost", ""]
OPTIONS: dict[str, Any] = {"samples_per_shard": 8, "split": {"train": 0.75, "test": 0.25}, "labels": "folder"}


def tree(uri: str) -> dict[str, bytes]:
    """The files, without locks, which stay in a bucket when they are released."""
    names = [entry.name for entry in storage.list_files(uri) if not entry.name.endswith(".lock")]
    return {name: storage.read_bytes(storage.join(uri, name)) for name in names}


def upload(folder: Path, uri: str) -> None:
    files = [path for path in folder.rglob("*") if path.is_file()]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda path: storage.upload(path, storage.join(uri, str(path.relative_to(folder)))), files))


@pytest.fixture
def images(tmp_path: Path) -> Path:
    zoo.fill(tmp_path / "in", 40, labels=("cat", "a dog"))
    (tmp_path / "in" / "cat" / "bad.png").write_bytes(b"bad")
    return tmp_path / "in"


def test_a_failing_server_loses_and_doubles_nothing(bucket_server, images, tmp_path):
    options = {**OPTIONS, "max_rejected": 0.1}
    run(images, tmp_path / "local", **options)
    upload(images, bucket_server.uri + "/in")
    bucket_server.faults.plan = FAULTS
    output = bucket_server.uri + "/out"
    run(bucket_server.uri + "/in", output, workers=2, **options)
    verify(output)
    assert all(bucket_server.faults.done[fault] > 3 for fault in ("503", "429", "cut", "lost"))
    bucket_server.faults.plan = []
    theirs, ours = tree(output), local_tree(tmp_path / "local")
    different = {name for name in theirs.keys() | ours.keys() if theirs.get(name) != ours.get(name)}
    assert different <= {"index.json", "names-0000.npy"}  # they name the source's place
    assert load_index(output).splits == load_index(str(tmp_path / "local")).splits


def test_archives_and_manifests_in_a_bucket(bucket_server, images, tmp_path):
    archive = shutil.make_archive(str(tmp_path / "all"), "gztar", images)
    storage.upload(Path(archive), bucket_server.uri + "/all.tar.gz")
    upload(images, bucket_server.uri + "/in")
    names = sorted(str(path.relative_to(tmp_path)) for path in images.rglob("0*.png"))
    elsewhere = [f"{bucket_server.uri}/{name}" for name in names[20:]]
    storage.write_bytes(bucket_server.uri + "/list.csv", "\n".join(["path", *names[:20], *elsewhere]).encode())
    bucket_server.faults.plan = FAULTS
    run(bucket_server.uri + "/all.tar.gz", tmp_path / "from tar", max_rejected=0.1)
    run(bucket_server.uri + "/list.csv", tmp_path / "from list")
    files = {path.read_bytes() for path in images.rglob("0*.png")}
    for output in (tmp_path / "from tar", tmp_path / "from list"):
        assert {data for data, _ in samples(output, "train").values()} == files


def test_an_empty_prefix_and_a_missing_bucket_are_one_line(bucket_server, tmp_path):
    missing = f"{bucket_server.uri.partition(':')[0]}://no-such-bucket"
    for source in (bucket_server.uri + "/nothing", f"{missing}/in"):
        with pytest.raises(ValueError, match=source) as error:
            run(source, tmp_path / "out")
        assert "\n" not in str(error.value) and not os.path.lexists(tmp_path / "out")
    zoo.fill(tmp_path / "in", 2)
    with pytest.raises(ValueError, match=f"^--test-source {bucket_server.uri}/nothing: no images in there$"):
        run(tmp_path / "in", tmp_path / "out", test_source=bucket_server.uri + "/nothing", labels="folder")
    with pytest.raises(ValueError, match=r"there is no (bucket|container) 'no-such-bucket'"):
        run(tmp_path / "in", f"{missing}/out")


@pytest.mark.slow
def test_a_killed_run_continues_in_another_process(bucket_server, images, monkeypatch, capsys):
    """As after a lost pod: nothing local is left, and the dead owner's lock is taken over."""
    monkeypatch.setattr(lock, "DEAD_AFTER", 3.0)
    source, output = bucket_server.uri + "/in", bucket_server.uri + "/out"
    upload(images, source)
    words = command(source, output, ELSEWHERE + KILLED_DECODING, workers=1, max_rejected=0.1, **OPTIONS)
    assert subprocess.run(words, stdout=subprocess.DEVNULL, check=False).returncode == -signal.SIGKILL
    assert not storage.exists(output + "/index.json") and storage.exists(output + "/.shard.lock")
    run(source, output, max_rejected=0.1, **OPTIONS)
    assert "2 chunks are done already" in capsys.readouterr().out
    run(source, bucket_server.uri + "/whole", max_rejected=0.1, **OPTIONS)
    assert tree(output) == tree(bucket_server.uri + "/whole")
