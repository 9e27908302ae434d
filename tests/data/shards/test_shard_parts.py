"""Parts of one sharding: each in its own place, killed, repeated, appended, in a bucket, in pods of the pipeline's
stage shard; then joined."""

import shutil
import signal
import subprocess
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import must
from must.base import lock
from must.data.format import load_index, verify
from must.pods.notes import read_notes
from must.pods.supervise import run_stage
from tests import zoo
from tests.data.shards.test_shard import refused, rejected, run, samples, tree
from tests.data.shards.test_shard_gcs import FAULTS, upload
from tests.data.shards.test_shard_gcs import tree as bucket_tree
from tests.data.shards.test_shard_restart import ELSEWHERE, KILLED_DECODING, command
from tests.stores import Server

OPTIONS: dict[str, Any] = {
    "samples_per_shard": 5, "split": {"train": 0.8, "test": 0.2}, "labels": "folder", "max_rejected": 0.1
}  # fmt: skip


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes, a damaged file, another file, and copies, some of which are in two splits' way."""
    folder = tmp_path_factory.mktemp("parts") / "in"
    zoo.fill(folder, 60, labels=("cat", "a dog"))
    copies = {f"a dog/copy-{number}.png": (folder / f"cat/{number:05d}.png").read_bytes() for number in range(0, 12, 2)}
    zoo.put(folder, {"cat/bad.png": b"bad", "cat/notes.txt": b"notes", **copies})
    return folder


def run_parts(source: Path | str, output: Path | str, parts: int, **options: Any) -> Any:
    for number in range(1, parts + 1):
        assert run(source, output, part=f"{number}/{parts}", **options) is None
    return run(source, output, **options)


def test_joined_parts_hold_what_one_program_packs(images: Path, tmp_path: Path) -> None:
    """Of ten test images one is a training image; a copy may lie in another part than its original."""
    zoo.fill(tmp_path / "test", 9, start=200, labels=("cat",))
    (tmp_path / "test" / "cat" / "seen.png").write_bytes((images / "cat" / "00002.png").read_bytes())
    more = {**OPTIONS, "test_source": str(tmp_path / "test"), "drop_duplicates": True}
    whole = run(images, tmp_path / "whole", **more)
    made = run_parts(images, tmp_path / "out", 4, **more)
    verify(str(tmp_path / "out"))
    for split in ("train", "test"):
        ours, theirs = (samples(tmp_path / place, split) for place in ("out", "whole"))
        assert {data for data, _ in ours.values()} == {data for data, _ in theirs.values()}
    for name in ("splits", "labels", "rejected", "reasons", "duplicates", "dropped", "skipped", "source", "settings"):
        assert getattr(made, name) == getattr(whole, name), name
    refused, expected = (rejected(tmp_path / place) for place in ("out", "whole"))
    assert refused["cat/bad.png"] == expected["cat/bad.png"]
    assert len(refused) == len(expected) and "seen.png" not in refused
    assert {path.name[0] for path in (tmp_path / "out").iterdir()} <= set("tcnri")  # nothing hidden is left
    assert run(images, tmp_path / "out", part="2/4", **more).sha256 == made.sha256  # once more: nothing to do
    assert run(images, tmp_path / "out", **more).sha256 == made.sha256
    assert not (tmp_path / "out" / ".shard-parts").exists()


def test_parts_at_the_same_time_and_one_killed(images: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    part = partial(command, images, output, workers=1, **OPTIONS)
    commands = [part(part="1/3"), part(before=KILLED_DECODING, part="2/3"), part(part="3/3")]
    processes = [subprocess.Popen(words, stdout=subprocess.DEVNULL) for words in commands]
    assert [process.wait(120) for process in processes] == [0, -signal.SIGKILL, 0]
    done = {path: path.stat().st_mtime_ns for path in output.glob(".shard-parts/2-of-3/.shard/*.npz")}
    assert len(done) == 2
    refused(images, output, r"not done: --part 2/3; run them, or delete", **OPTIONS)
    run(images, output, part="2/3", **OPTIONS)
    assert {path: path.stat().st_mtime_ns for path in done} == done
    run(images, output, **OPTIONS)
    run_parts(images, tmp_path / "joined", 3, **OPTIONS)
    assert tree(output) == tree(tmp_path / "joined")


def test_parts_append(tmp_path: Path) -> None:
    source, output = tmp_path / "in", tmp_path / "out"
    zoo.fill(source, 20)
    run(source, output, **OPTIONS)
    zoo.fill(source, 33, start=100)
    (source / "again.png").write_bytes((source / "00003.png").read_bytes())
    made = run_parts(source, output, 2, append=True, **OPTIONS)
    assert made.revision == 1 and sum(counts["samples"] for counts in made.splits.values()) == 53
    assert set(rejected(output)) == {"again.png"}
    assert run_parts(source, output, 2, append=True, **OPTIONS).sha256 == made.sha256  # nothing new
    assert not (output / ".shard-parts").exists()
    verify(str(output))


def test_parts_of_an_index_that_has_changed_are_made_again(tmp_path: Path) -> None:
    """Killed after the index was written, or joined by another program meanwhile: nothing is added twice."""
    source, output = tmp_path / "in", tmp_path / "out"
    zoo.fill(source, 20)
    run(source, output, part="1/2", **OPTIONS)
    run(source, output, part="2/2", **OPTIONS)
    shutil.copytree(output, tmp_path / "before")
    made = run(source, output, **OPTIONS)
    shutil.copytree(tmp_path / "before" / ".shard-parts", output / ".shard-parts")
    assert run(source, output, append=True, **OPTIONS).sha256 == made.sha256
    assert not (output / ".shard-parts").exists()


def test_parts_with_other_parameters_are_not_joined(images: Path, tmp_path: Path) -> None:
    run(images, tmp_path / "out", part="1/1", **OPTIONS)
    run(images, tmp_path / "new", part="1/2", **OPTIONS)
    run(images, tmp_path / "new", part="2/2", **OPTIONS, drop_duplicates=True)
    refused(images, tmp_path / "new", r"part 2/2 in .* differs in: settings; run it again", **OPTIONS)
    run(images, tmp_path / "new", part="2/2", **OPTIONS)
    assert run(images, tmp_path / "new", **OPTIONS).splits == load_index(str(tmp_path / "out")).splits


@pytest.mark.parametrize("part", ["0/2", "3/2", "1/0", "1", "a/b", "-1/2", ""])
def test_a_part_out_of_range_is_one_line(images: Path, tmp_path: Path, part: str) -> None:
    message = r"--part .*: (expected I/N|parts are numbered from 1 to 2|there is at least)"
    refused(images, tmp_path / "out", message, part=part)


def test_the_function_tells_what_became_of_a_part(images: Path, tmp_path: Path) -> None:
    options = {"source": images, "output": tmp_path / "out", "workers": 1, "samples_per_shard": 20}
    assert must.shard(part="1/2", **options).sha256 == must.shard(part="2/2", **options).sha256 == ""
    assert must.shard(**options).sha256 == load_index(str(tmp_path / "out")).sha256


@pytest.mark.slow
def test_parts_in_a_bucket_that_fails(bucket_server: Server, images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "DEAD_AFTER", 1.0)
    source, output = bucket_server.uri + "/in", bucket_server.uri + "/out"
    upload(images, source)
    run_parts(source, bucket_server.uri + "/whole", 2, **OPTIONS)
    killed = command(source, output, ELSEWHERE + KILLED_DECODING, part="2/2", workers=1, **OPTIONS)
    assert subprocess.run(killed, check=False).returncode == -signal.SIGKILL
    bucket_server.faults.plan = FAULTS
    run_parts(source, output, 2, **OPTIONS)
    bucket_server.faults.plan = []
    assert bucket_tree(output) == bucket_tree(bucket_server.uri + "/whole")
    assert run(source, output, part="1/2", **OPTIONS) == run(source, output, **OPTIONS)  # once more: nothing to do
    assert bucket_server.faults.done["503"] and bucket_server.faults.done["lost"]


SETTINGS = {"samples_per_shard": 4, "workers": 1}


def pack(number, source, work):
    given = {"work_uri": str(work), "run_id": "7", "source": str(source), "shard_settings": SETTINGS}
    run_stage("shard-part", given | {"part": f"{number}/2"})


def join(source, work, tmp_path, run="7"):
    given = {"work_uri": str(work), "run_id": run, "source": str(source), "shard_settings": SETTINGS}
    made = run_stage("shard", given | {"index": str(tmp_path / "index")})
    return made["index_sha256"], made["index"]["images"]


def test_the_stage_after_the_parts_makes_their_shards(tmp_path, capfd):
    source, work = tmp_path / "in", tmp_path / "work"
    zoo.fill(source, 20)
    pack(2, source, work)
    with pytest.raises(SystemExit, match="2"):
        join(source, work, tmp_path)
    assert "these are not done: --part 1/2" in capfd.readouterr().out
    pack(1, source, work)
    made = join(source, work, tmp_path, "8")
    assert made == (load_index(str(work / "shards")).sha256, 20)
    results = {n.stage: n.facts.result for run in "78" for n in read_notes(str(work), run)}
    assert results == {"shard-1-of-2": "done", "shard-2-of-2": "done", "shard": "20 images, revision 0"}
    pack(1, source, work)  # the run is submitted again: nothing is packed again
    assert join(source, work, tmp_path, "8") == made
