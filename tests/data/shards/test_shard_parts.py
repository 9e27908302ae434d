"""Parts of one sharding: shared, killed, taken over, appended, in a bucket; the bytes are those of one program."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import must
from must.base import lock, storage
from must.config import ShardConfig
from must.data.format.index import Index, load_index
from must.data.format.samples import verify
from must.data.shards import build
from must.data.shards.workdir import Workdir, part_lock
from tests import zoo
from tests.data.shards.test_shard import refused, run, tree
from tests.data.shards.test_shard_gcs import FAULTS, upload
from tests.data.shards.test_shard_gcs import tree as bucket_tree
from tests.data.shards.test_shard_restart import KILLED_ASSEMBLING, KILLED_DECODING, wait_until
from tests.stores import Server

OPTIONS: dict[str, Any] = {
    "samples_per_shard": 5, "split": {"train": 0.8, "test": 0.2}, "labels": "folder", "max_rejected": 0.1
}  # fmt: skip
PART = """
import sys
from must.base.exits import exiting
from must.api.stages import call
source, output, part, options = sys.argv[1:]
with exiting("shard"):
    call("shard", source=source, output=output, part=part, workers=1, **eval(options))
"""


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes, a damaged file, and copies, some of which are in two splits' way."""
    folder = tmp_path_factory.mktemp("parts") / "in"
    zoo.fill(folder, 60, labels=("cat", "a dog"))
    (folder / "cat" / "bad.png").write_bytes(b"bad")
    for number in range(0, 12, 2):
        (folder / "a dog" / f"copy-{number}.png").write_bytes((folder / "cat" / f"{number:05d}.png").read_bytes())
    return folder


def part_of(source: Path | str, output: Path | str, part: str, before: str = "", **options: Any) -> list[str]:
    """The command of a part in a process of its own."""
    return [sys.executable, "-c", before + PART, str(source), str(output), part, repr({**OPTIONS, **options})]


def test_parts_write_the_bytes_of_one(images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The last part first: five chunks leave nothing for it to do. Of ten test images one is a training image."""
    zoo.fill(tmp_path / "test", 9, start=200, labels=("cat",))
    (tmp_path / "test" / "cat" / "seen.png").write_bytes((images / "cat" / "00002.png").read_bytes())
    parts, more = 6, {"test_source": str(tmp_path / "test"), **OPTIONS, "samples_per_shard": 20}
    run(images, tmp_path / "whole", **more)
    capsys.readouterr()
    for number in range(parts, 0, -1):
        assert not (tmp_path / "out" / "index.json").exists()
        index = run(images, tmp_path / "out", part=f"{number}/{parts}", **more)
        assert (index is None) == (number > 1)
    assert tree(tmp_path / "out") == tree(tmp_path / "whole")
    assert not (tmp_path / "out" / ".shard").exists() and not (tmp_path / "out" / ".shard-parts").exists()
    shown = capsys.readouterr().out
    assert shown.count("chunks are not done; the last part to finish") == parts - 1
    run(images, tmp_path / "out", part=f"2/{parts}", **more)  # once more: nothing to do
    assert "complete already" in capsys.readouterr().out and tree(tmp_path / "out") == tree(tmp_path / "whole")


def test_parts_at_the_same_time(images: Path, tmp_path: Path) -> None:
    run(images, tmp_path / "whole", **OPTIONS)
    commands = [part_of(images, tmp_path / "out", f"{number}/3") for number in (1, 2, 3)]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for command in commands]
    said = [process.communicate()[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0]
    assert sum("index: " in text for text in said) == 1, said
    assert tree(tmp_path / "out") == tree(tmp_path / "whole")


def test_a_killed_part_is_taken_over(images: Path, tmp_path: Path) -> None:
    """By the same part again; what it had done is not repeated."""
    run(images, tmp_path / "whole", **OPTIONS)
    output = tmp_path / "out"
    killed = part_of(images, output, "1/2", KILLED_DECODING)
    assert subprocess.run(killed, check=False).returncode == -signal.SIGKILL
    done = {path: path.stat().st_mtime_ns for path in output.glob(".shard/*/unit-*.npz")}
    assert len(done) == 2
    assert run(images, output, part="2/2", **OPTIONS) is None
    assert {path: path.stat().st_mtime_ns for path in done} == done
    assert run(images, output, part="1/2", **OPTIONS) is not None
    assert tree(output) == tree(tmp_path / "whole")


@pytest.mark.slow
def test_what_parts_have_left_is_done_without_parts_or_by_another_number(images: Path, tmp_path: Path) -> None:
    run(images, tmp_path / "whole", **OPTIONS)
    run(images, tmp_path / "alone", part="2/3", **OPTIONS)
    done = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "alone").glob(".shard/*/*.npz")}
    assert run(images, tmp_path / "alone", **OPTIONS) is not None and done
    for part in ("2/3", "1/4", "2/4", "3/4", "4/4"):
        run(images, tmp_path / "other", part=part, **OPTIONS)
    assert tree(tmp_path / "alone") == tree(tmp_path / "other") == tree(tmp_path / "whole")


def test_parts_append(tmp_path: Path) -> None:
    source = tmp_path / "in"
    zoo.fill(source, 20)
    for output in ("whole", "out"):
        run(source, tmp_path / output, **OPTIONS)
    zoo.fill(source, 33, start=100)
    run(source, tmp_path / "whole", append=True, **OPTIONS)
    assert run(source, tmp_path / "out", append=True, part="1/2", **OPTIONS) is None
    made = run(source, tmp_path / "out", append=True, part="2/2", **OPTIONS)
    assert made.revision == 1 and tree(tmp_path / "out") == tree(tmp_path / "whole")
    assert run(source, tmp_path / "out", append=True, part="1/2", **OPTIONS).revision == 1  # nothing new
    verify(str(tmp_path / "out"))


@pytest.mark.parametrize("append", [False, True])
def test_a_part_that_looks_while_another_ends_does_not_take_its_shards_for_strangers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, append: bool
) -> None:
    source, output = tmp_path / "in", tmp_path / "out"
    zoo.fill(source, 20)
    if append:
        run(source, output, **OPTIONS)
        zoo.fill(source, 10, start=100)
    run(source, output, part="1/2", append=append, **OPTIONS)
    existing_index = build.existing_index

    def slow(config: ShardConfig) -> Index | None:
        found = existing_index(config)
        monkeypatch.undo()
        run(source, output, append=append, part="2/2", **OPTIONS)
        return found

    monkeypatch.setattr(build, "existing_index", slow)
    assert run(source, output, append=append, part="1/2", **OPTIONS).revision == int(append)
    verify(str(output))


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("a file more", "it differs in: files, listing"),
        ("a file renamed", "it differs in: listing"),
        ("resize", "it differs in: settings"),
        ("source", "it differs in: source, files, listing"),
    ],
)
def test_a_part_of_another_run_is_refused(images: Path, tmp_path: Path, what: str, message: str) -> None:
    source, output = tmp_path / "in", tmp_path / "out"
    shutil.copytree(images, source)
    run(source, output, part="1/2", **OPTIONS)
    if what == "a file more":
        zoo.fill(source / "cat", 1, start=300)
    elif what == "a file renamed":
        (source / "cat" / "00000.png").rename(source / "cat" / "another.png")
    elif what == "source":
        source = source / "cat"
    refused(source, output, message, part="2/2", **OPTIONS, resize=24 if what == "resize" else 0)


@pytest.mark.parametrize("part", ["0/2", "3/2", "1/0", "1", "a/b", "-1/2", ""])
def test_a_part_out_of_range_is_one_line(images: Path, tmp_path: Path, part: str) -> None:
    message = r"--part .*: (expected I/N|parts are numbered from 1 to 2|there is at least)"
    refused(images, tmp_path / "out", message, part=part)


def test_a_part_twice_or_all_of_it_beside_a_living_part_is_refused(images: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    with subprocess.Popen(part_of(images, output, "1/2"), stdout=subprocess.DEVNULL) as first:
        wait_until(lambda: (output / ".shard-parts" / "1-of-2.lock").exists() and any(output.glob(".shard/*/*.npz")))
        first.send_signal(signal.SIGSTOP)
        for more in ({"part": "1/2"}, {}, {"resize": 24}):
            message = rf"{output} is being written by another `must shard --part 1/2` \(pro"
            with pytest.raises(ValueError, match=message):
                run(images, output, **{**OPTIONS, **more})
        assert run(images, output, part="2/2", **OPTIONS) is None
        first.send_signal(signal.SIGCONT)
        assert first.wait(120) == 0
    run(images, tmp_path / "whole", **OPTIONS)
    assert tree(output) == tree(tmp_path / "whole")


def test_the_function_tells_what_became_of_a_part(images: Path, tmp_path: Path) -> None:
    options = {"source": images, "output": tmp_path / "out", "workers": 1, "samples_per_shard": 20, "max_rejected": 0.1}
    assert must.shard(part="1/2", **options).sha256 == ""
    assert must.shard(part="2/2", **options).sha256 == load_index(str(tmp_path / "out")).sha256


@pytest.mark.slow
def test_parts_in_a_bucket_that_fails(bucket_server: Server, images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One of them killed on another machine; the others' pods have nothing of their own to go on with."""
    monkeypatch.setattr(lock, "DEAD_AFTER", 1.0)
    options = {**OPTIONS, "samples_per_shard": 10}
    source, output = bucket_server.uri + "/in", bucket_server.uri + "/out"
    upload(images, source)
    run(source, bucket_server.uri + "/whole", **options)
    elsewhere = "import socket\nsocket.gethostname = lambda: 'another-pod'\n" + KILLED_DECODING
    killed = part_of(source, output, "2/3", elsewhere, **options)
    assert subprocess.run(killed, check=False).returncode == -signal.SIGKILL
    assert storage.exists(f"{output}/{part_lock('2-of-3').name}")
    bucket_server.faults.plan = FAULTS
    for number in (1, 2, 3):
        assert (run(source, output, part=f"{number}/3", **options) is None) == (number < 3)
    bucket_server.faults.plan = []
    assert bucket_tree(output) == bucket_tree(bucket_server.uri + "/whole")
    assert bucket_server.faults.done["503"] and bucket_server.faults.done["lost"]


def test_what_killed_programs_were_writing_goes_while_another_part_deletes_its_folder(tmp_path, monkeypatch):
    own, scandir = tmp_path / ".shard" / "part-2-of-2", os.scandir
    own.mkdir(parents=True)
    left = [place / f"{storage.TEMPORARY}x" for place in (tmp_path, tmp_path / ".shard")]
    for path in left:
        path.touch()

    def another_part_deletes(path):
        if Path(path) == own:
            own.rmdir()
        return scandir(path)

    monkeypatch.setattr(os, "scandir", another_part_deletes)
    Workdir(str(tmp_path), 1, 2).tidy()
    assert not own.exists() and not any(path.exists() for path in left)


@pytest.mark.slow
def test_one_killed_while_it_makes_the_shards_is_followed_by_any_part(images: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    more = {"split": {"train": 1.0}, "drop_duplicates": False}
    run(images, output, part="1/2", **{**OPTIONS, **more})
    killed = part_of(images, output, "2/2", KILLED_ASSEMBLING, **more)
    assert subprocess.run(killed, check=False).returncode == -signal.SIGKILL
    assert len(list(output.glob("train-*.tar"))) == 2 and not (output / "index.json").exists()
    assert run(images, output, part="1/2", **{**OPTIONS, **more}) is not None
    run(images, tmp_path / "plain", **{**OPTIONS, **more})
    assert tree(output) == tree(tmp_path / "plain")
