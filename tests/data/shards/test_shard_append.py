"""--append, duplicates and test sources: nothing moves, nothing is tested on that was trained on."""

import json
import tarfile
from pathlib import Path

import pytest

from must.data.format import verify
from must.data.shards import commit
from tests import zoo
from tests.data.shards.test_shard import rejected, run, samples, sharded, tree
from tests.data.shards.test_shard_restart import interrupted

HALVES = {"train": 0.5, "test": 0.5}


def test_append_adds_new_files_and_moves_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = sharded(tmp_path, 30, split=HALVES, samples_per_shard=10, append=True)
    before = tree(tmp_path / "out")
    zoo.fill(tmp_path / "in", 25, start=30)
    second = run(tmp_path / "in", tmp_path / "out", split=HALVES, samples_per_shard=10, append=True)
    verify(str(tmp_path / "out"))
    after = tree(tmp_path / "out")
    assert {name for name in before if after[name] != before[name]} <= {"index.json", "rejected.jsonl"}
    assert (first.revision, second.revision) == (0, 1)
    for split in HALVES:
        assert second.list_shards(split)[: len(first.list_shards(split))] == first.list_shards(split)
    names = [name for split in HALVES for name in samples(tmp_path / "out", split)]
    assert sorted(names) == [f"{number:05d}.png" for number in range(55)]
    keys = []
    for shard in second.shards:
        with tarfile.open(tmp_path / "out" / shard.name) as tar:
            keys += tar.getnames()
    assert len(set(keys)) == len(keys) == 110
    third = run(tmp_path / "in", tmp_path / "out", split=HALVES, samples_per_shard=10, append=True)
    assert third.sha256 == second.sha256 and "nothing new" in capsys.readouterr().out
    assert tree(tmp_path / "out") == after


def test_append_knows_folders_by_place_and_images_by_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same camera's names in two folders, typed alike; one folder, typed in four ways, linked, moved, copied."""
    for place, first in (("a", 0), ("b", 100)):
        zoo.fill(tmp_path / place / "photos", 5, start=first)
        for number, path in enumerate(sorted((tmp_path / place / "photos").iterdir())):
            path.rename(path.with_name(f"IMG_{number}.png"))
        monkeypatch.chdir(tmp_path / place)
        made = run("photos", "../out", append=True)
    assert made.splits["train"]["samples"] == 10 and len(rejected(tmp_path / "out")) == 0
    (tmp_path / "link").symlink_to(tmp_path / "b")
    spellings = ("./photos", "../b/photos/", f"{tmp_path}/b/photos", f"file://{tmp_path}/b/photos", "../link/photos")
    for spelling in spellings:
        assert run(spelling, "../out", append=True).sha256 == made.sha256
    (tmp_path / "b").rename(tmp_path / "moved")
    assert run(tmp_path / "moved" / "photos", tmp_path / "out", append=True).sha256 == made.sha256
    (tmp_path / "moved" / "photos" / "IMG_9.png").write_bytes(zoo.encoded(zoo.picture(77)))
    assert run(tmp_path / "moved" / "photos", tmp_path / "out", append=True).splits["train"]["samples"] == 11
    assert set(rejected(tmp_path / "out").values()) == {"same content as another image"}


def test_append_with_a_lower_limit_on_pixels_leaves_old_images_readable(tmp_path: Path) -> None:
    sharded(tmp_path, 3)
    zoo.put(tmp_path / "more", {"small.png": zoo.encoded(zoo.picture(7, 16, 16))})
    made = run(tmp_path / "more", tmp_path / "out", append=True, max_pixels=500)
    assert made.max_pixels == 89_478_485 and made.splits["train"]["samples"] == 4


def test_append_tries_rejected_files_again(tmp_path: Path) -> None:
    zoo.fill(tmp_path / "in", 5)
    zoo.put(tmp_path / "in", {"mended.png": b"half an upload", "broken.png": b"broken"})
    assert run(tmp_path / "in", tmp_path / "out", max_rejected=1).rejected == 2
    (tmp_path / "in" / "mended.png").write_bytes(zoo.encoded(zoo.picture(77)))
    index = run(tmp_path / "in", tmp_path / "out", append=True, max_rejected=1)
    assert index.rejected == 1 and set(rejected(tmp_path / "out")) == {"broken.png"}
    assert "mended.png" in samples(tmp_path / "out", "train")
    again = run(tmp_path / "in", tmp_path / "out", append=True, max_rejected=0.2)  # 1 of 7, not 1 of the 1 tried again
    assert (again.revision, again.sha256) == (1, index.sha256)
    assert set(rejected(tmp_path / "out")) == {"broken.png"} and not (tmp_path / "out" / ".shard").exists()


def test_the_list_is_of_the_last_run_and_a_refused_one_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commit, "FEW_REJECTED", 0)
    zoo.fill(tmp_path / "in", 10)
    (tmp_path / "in" / "broken.png").write_bytes(b"broken")
    zoo.fill(tmp_path / "bad", 1, start=50)
    zoo.put(tmp_path / "bad", {f"bad{number}.png": b"bad" for number in range(3)})
    made = run(tmp_path / "in", tmp_path / "out", max_rejected=0.1)
    with pytest.raises(ValueError, match=r"3 of 14 files were rejected .* such as bad0.*all are in .*rejected\.jsonl"):
        run(tmp_path / "bad", tmp_path / "out", append=True, max_rejected=0.1)
    assert set(rejected(tmp_path / "out")) == {f"bad{number}.png" for number in range(3)}
    again = run(tmp_path / "in", tmp_path / "out", append=True, max_rejected=0.1)
    assert again.sha256 == made.sha256 and set(rejected(tmp_path / "out")) == {"broken.png"}
    assert run(tmp_path / "bad", tmp_path / "out", append=True, max_rejected=0.5).rejected == 3


def test_append_knows_contents_of_earlier_revisions(tmp_path: Path) -> None:
    sharded(tmp_path, 12, split=HALVES, samples_per_shard=5)
    old = {split: list(samples(tmp_path / "out", split)) for split in HALVES}
    assert all(old.values())
    zoo.fill(tmp_path / "more", 3, start=50)
    copies = {f"was-in-{split}.png": (tmp_path / "in" / old[split][0]).read_bytes() for split in HALVES}
    zoo.put(tmp_path / "more", copies)
    index = run(tmp_path / "more", tmp_path / "out", split={"train": 1.0}, append=True, drop_duplicates=True)
    assert (index.duplicates, index.dropped) == (2, 2)
    assert rejected(tmp_path / "out") == {
        "was-in-train.png": "same content as another image",
        "was-in-test.png": "same content as another image in the split test",
    }
    assert len(samples(tmp_path / "out", "train")) == len(old["train"]) + 3


@pytest.mark.parametrize("drop", [False, True])
def test_duplicates_are_counted_and_left_out_on_request(
    tmp_path: Path, drop: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    zoo.fill(tmp_path / "in", 20)
    first = (tmp_path / "in" / "00000.png").read_bytes()
    zoo.put(tmp_path / "in" / "copies", {f"{number}.png": first for number in range(6)})
    index = run(tmp_path / "in", tmp_path / "out", drop_duplicates=drop, samples_per_shard=7)
    found = samples(tmp_path / "out", "train")
    verify(str(tmp_path / "out"))
    assert index.duplicates == 6 and index.dropped == (6 if drop else 0)
    assert f"  20 pictures, 6 copies{', 6 left out' if drop else ''}\n" in capsys.readouterr().out
    assert len(found) == (20 if drop else 26)
    assert len({data for data, _ in found.values()}) == 20
    gone = rejected(tmp_path / "out")
    assert len(gone) == index.dropped and index.rejected == 0
    assert {*gone, *found} == {str(path.relative_to(tmp_path / "in")) for path in (tmp_path / "in").rglob("*.png")}


def test_what_is_tested_on_is_never_trained_on(tmp_path: Path) -> None:
    zoo.fill(tmp_path / "train", 30)
    zoo.fill(tmp_path / "labelled", 10, start=100, labels=("cat", "dog"))
    seen = ("00003.png", "00004.png", "00005.png")
    zoo.put(tmp_path / "labelled" / "cat", {name: (tmp_path / "train" / name).read_bytes() for name in seen})
    options = {"test_source": str(tmp_path / "labelled"), "labels": "folder", "samples_per_shard": 8, "workers": 2}
    index = run(tmp_path / "train", tmp_path / "out", **options)
    verify(str(tmp_path / "out"))
    train, test = samples(tmp_path / "out", "train"), samples(tmp_path / "out", "test")
    assert len(train) == 27 and len(test) == 13
    assert not {data for data, _ in train.values()} & {data for data, _ in test.values()}
    assert index.splits == {"train": {"samples": 27, "labelled": 0}, "test": {"samples": 13, "labelled": 13}}
    assert set(rejected(tmp_path / "out")) == set(seen) and index.dropped == 3


def test_new_test_images_that_were_trained_on_are_not_tested_on(tmp_path: Path) -> None:
    sharded(tmp_path, 10, labels="folder")
    zoo.fill(tmp_path / "labelled", 4, start=200)
    (tmp_path / "labelled" / "seen.png").write_bytes((tmp_path / "in" / "00001.png").read_bytes())
    run(tmp_path / "in", tmp_path / "out", test_source=str(tmp_path / "labelled"), labels="folder", append=True)
    assert "seen.png" not in samples(tmp_path / "out", "test") and len(samples(tmp_path / "out", "test")) == 4
    assert rejected(tmp_path / "out") == {"seen.png": "same content as another image in the split train"}


@pytest.fixture
def killed(tmp_path: Path) -> Path:
    """Shards of a/, and what an append of b/ has left that was killed before it could write the index."""
    zoo.fill(tmp_path / "a", 5)
    zoo.fill(tmp_path / "b", 5, start=10)
    run(tmp_path / "a", tmp_path / "out")
    interrupted(tmp_path / "b", tmp_path / "out", append=True)
    assert {"train-000001.tar", "names-0001.npy"} <= {path.name for path in (tmp_path / "out").iterdir()}
    return tmp_path


@pytest.mark.parametrize("append", [False, True])
def test_a_killed_append_goes_on_after_a_run_that_found_nothing_to_do(killed: Path, append: bool) -> None:
    before = tree(killed / "out")
    assert run(killed / "a", killed / "out", append=append).revision == 0
    assert tree(killed / "out") == before
    assert run(killed / "b", killed / "out", append=True).splits["train"]["samples"] == 10
    run(killed / "a", killed / "whole")
    run(killed / "b", killed / "whole", append=True)
    assert tree(killed / "out") == tree(killed / "whole")


@pytest.mark.parametrize("how", ["all that is new is rejected", "the index has changed since"])
def test_an_append_that_was_given_up_leaves_nothing_behind(killed: Path, how: str) -> None:
    if how.startswith("all"):
        (killed / "a" / "bad.png").write_bytes(b"bad")
    else:
        path = killed / "out" / ".shard" / "run.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"previous": ""}))
    assert run(killed / "a", killed / "out", append=True, max_rejected=1.0).revision == 0
    names = {"index.json", "rejected.jsonl", "train-000000.tar", "train-000000.npy"}
    assert {path.name for path in (killed / "out").iterdir()} == names | {"names-0000.npy", "contents-0000.npy"}
    assert run(killed / "b", killed / "out", append=True, max_rejected=1.0).splits["train"]["samples"] == 10
