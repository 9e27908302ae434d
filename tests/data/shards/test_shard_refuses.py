"""`must shard` overwrites nothing that it has not written, and takes nothing for its own."""

from pathlib import Path

import pytest

from must.data.shards import commit
from tests import zoo
from tests.data.shards.test_shard import refused, run, tree
from tests.data.shards.test_shard_gcs import tree as remote_tree
from tests.data.shards.test_shard_gcs import upload
from tests.stores import Server
from tests.zoo import tar_of


def webdataset(folder: Path) -> Path:
    """Two shards of somebody else's making, with captions."""
    for number in range(2):
        members = []
        for sample in range(3):
            picture = zoo.encoded(zoo.picture(3 * number + sample, 16, 12))
            members += [(f"{number}{sample}.png", picture), (f"{number}{sample}.caption.txt", b"a picture")]
        zoo.put(folder, {f"train-{number:06d}.tar": tar_of(*members)})
    return folder


@pytest.mark.parametrize("append", [False, True])
@pytest.mark.parametrize("source", ["in", "mine", "mine/", "other/../mine", "mine/train-{000000..000001}.tar", "link"])
def test_shards_of_somebody_else_stay(tmp_path: Path, source: str, append: bool) -> None:
    mine = webdataset(tmp_path / "mine")
    zoo.fill(tmp_path / "in", 6)
    (tmp_path / "link").symlink_to(mine)
    message = r"is inside --output|holds train-00000\d\.tar, which is not of an index"
    refused(f"{tmp_path}/{source}", mine, message, append=append)


def test_images_are_not_sharded_into_their_own_folder(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    zoo.fill(photos / "deep", 20)
    for source in (photos, photos / "deep"):
        refused(source, photos, f"--source {source}: is inside --output")
    message = f"--test-source {photos}: is inside --output"
    refused(webdataset(tmp_path / "other"), photos, message, test_source=str(photos), labels="folder")


def test_shards_may_lie_among_their_images(tmp_path: Path) -> None:
    zoo.fill(tmp_path / "photos", 20)
    before = tree(tmp_path / "photos")
    index = run(tmp_path / "photos", tmp_path / "photos" / "shards")
    assert index.splits["train"]["samples"] == 20 and before.items() <= tree(tmp_path / "photos").items()
    assert run(tmp_path / "photos", tmp_path / "photos" / "shards") == index
    zoo.fill(tmp_path / "photos", 2, start=100)
    assert run(tmp_path / "photos", tmp_path / "photos" / "shards", append=True).splits["train"]["samples"] == 22


@pytest.mark.parametrize("name", ["names-0000.npy", "contents-0000.npy", "rejected.jsonl", "test-000007.npy"])
def test_other_names_that_a_run_would_write_stay_too(tmp_path: Path, name: str) -> None:
    zoo.fill(tmp_path / "in", 6)
    zoo.put(tmp_path / "out", {name: b"mine"})
    refused(tmp_path / "in", tmp_path / "out", f"holds {name}")
    (tmp_path / "out" / name).unlink()
    run(tmp_path / "in", tmp_path / "out")
    (tmp_path / "out" / "train-000001.tar").write_bytes(b"mine")
    refused(tmp_path / "in", tmp_path / "out", r"holds train-000001\.tar, which is not of an index", append=True)


def test_what_else_lies_in_the_output_is_nobodys_business(tmp_path: Path) -> None:
    zoo.fill(tmp_path / "in", 6)
    zoo.put(tmp_path / "out", dict.fromkeys(("README", "train.tar", "deep/train-000000.tar"), b"mine"))
    run(tmp_path / "in", tmp_path / "out")
    assert (tmp_path / "out" / "deep" / "train-000000.tar").read_bytes() == b"mine"


def test_captions_are_no_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commit, "MOST_LABELS", 3)
    zoo.fill(tmp_path / "in", 12, labels=("a", "b", "c"))
    assert run(tmp_path / "in", tmp_path / "out", labels="folder").labels == ("a", "b", "c")
    zoo.fill(tmp_path / "in", 1, start=99, labels=("d",))
    with pytest.raises(ValueError, match="--labels folder: more than 3 different labels"):
        run(tmp_path / "in", tmp_path / "out2", labels="folder")


def test_in_a_bucket_as_well(bucket_server: Server, tmp_path: Path) -> None:
    mine, uri = webdataset(tmp_path / "mine"), bucket_server.uri + "/mine"
    zoo.fill(tmp_path / "in", 6)
    upload(mine, uri)
    before = remote_tree(bucket_server.uri)
    for source in (uri, uri + "/", uri + "/train-000000.tar"):
        with pytest.raises(ValueError, match="is inside --output"):
            run(source, uri)
    with pytest.raises(ValueError, match=r"holds train-00000\d\.tar"):
        run(tmp_path / "in", uri)
    assert remote_tree(bucket_server.uri) == before
