"""`must index make`: shards that another program has written are trained on as they are, where they are."""

import json
import shutil
from pathlib import Path

import pytest
import webdataset

from must.api.cli import main
from must.base import storage
from must.config import EvaluateConfig, TrainConfig
from must.data.format.index import parse_index
from must.data.format.samples import verify
from must.data.loading.reader import open_reader
from must.data.shards.in_place import make_index
from must.evaluation.evaluate import evaluate
from must.method.train.trainer import train
from tests import zoo
from tests.data.shards.test_shard import rejected, run, samples, tree
from tests.data.shards.test_shard_gcs import FAULTS, upload
from tests.data.tars import tar_of
from tests.evaluation.digits import digits
from tests.stores import Server, plant


def foreign(folder: Path, count: int = 30, each: int = 7, labels: bool = True) -> Path:
    """Tars as webdataset's own writer makes them: an image, a label as cls or in json, a caption, an unknown member."""
    folder.mkdir(parents=True)
    with webdataset.ShardWriter(f"file:{folder}/x-%03d.tar", maxcount=each, verbose=0) as writer:
        for number in range(count):
            label = ("cat", "a dog")[number % 2]
            kind = ("png", "jpg", "webp")[number % 3]
            picture = zoo.encoded(zoo.picture(number), {"png": "PNG", "jpg": "JPEG", "webp": "WEBP"}[kind])
            sample = {"__key__": f"a/{number:05d}", kind: picture, "txt": "a caption", "seg.bin": b"?"}
            if labels:
                sample |= {"cls": label} if number % 3 else {"json": {"label": label, "more": [1]}}
            writer.write(sample)
    return folder


def read(uri: str, cache: Path, split: str = "train") -> dict[str, tuple[bytes, str, str]]:
    """By way of the reader: name -> image, label, sha256."""
    reader = open_reader(uri, split, str(cache))
    found = {}
    for number in range(len(reader)):
        text = reader.description(number)
        found[text["source"]] = reader.image(number), text["label"], text["sha256"]
    return found


def refused(message: str, uri: Path | str, output: Path | str = "") -> None:
    with pytest.raises(ValueError, match=message) as error:
        make_index(str(uri), str(output), workers=1)
    assert "\n" not in str(error.value)


def sharded(source: str, output: Path) -> dict[str, tuple[bytes, str, str]]:
    run(source, output, labels="csv")
    return {name: (data, text["label"], text["sha256"]) for name, (data, text) in samples(output, "train").items()}


def test_samples_are_those_of_sharding_and_the_tars_stay(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = foreign(tmp_path / "in")
    before = tree(folder)
    expected = sharded(str(folder), tmp_path / "out")
    main(["index", "make", str(folder), "--workers", "2"])
    after = tree(folder)
    assert {name: after[name] for name in before} == before and not any(".tmp" in name for name in after)
    assert read(str(folder), tmp_path) == expected and len(expected) == 30
    index = verify(str(folder))
    assert index.labels == ("a dog", "cat") and index.splits == {"train": {"samples": 30, "labelled": 30}}
    assert [shard.file for shard in index.shards] == [f"x-{number:03d}.tar" for number in range(5)]
    printed = capsys.readouterr().out
    assert "30 .txt, 30 .bin" in printed or "30 .bin, 30 .txt" in printed
    folder.rename(tmp_path / "moved")
    assert read(str(tmp_path / "moved"), tmp_path) == expected


def test_names_are_those_of_sharding_with_one_tar_and_hidden_ones(tmp_path: Path) -> None:
    folder = foreign(tmp_path / "in" / "deep", 5).parent
    (folder / "deep" / "._x-000.tar").write_bytes(b"Mac OS X")
    (folder / "deep" / "._x-000.tar.gz").write_bytes(b"Mac OS X")
    make_index(str(folder), str(tmp_path / "index"), workers=1)
    names = set(read(str(tmp_path / "index"), tmp_path))
    assert names == set(sharded(str(folder), tmp_path / "out")) and len(names) == 5
    assert all(name.startswith("deep/x-00") for name in names)


def test_an_index_elsewhere_and_a_test_split(tmp_path: Path) -> None:
    folder, test = foreign(tmp_path / "in"), foreign(tmp_path / "test", 6, labels=False)
    before = tree(folder)
    index = make_index(f"{folder}/x-00{{1..3}}.tar", str(tmp_path / "index"), test=str(test), workers=1)
    assert tree(folder) == before
    assert index.splits == {"train": {"samples": 21, "labelled": 21}, "test": {"samples": 6, "labelled": 0}}
    assert read(str(tmp_path / "index"), tmp_path) == sharded(f"{folder}/x-00{{1..3}}.tar", tmp_path / "out")
    assert len(read(str(tmp_path / "index"), tmp_path, "test")) == 6
    verify(str(tmp_path / "index"))


@pytest.mark.slow
def test_from_a_bucket_with_the_index_there_or_here(bucket_server: Server, tmp_path: Path) -> None:
    folder = foreign(tmp_path / "in")
    uri = bucket_server.uri + "/foreign"
    upload(folder, uri)
    bucket_server.faults.plan = FAULTS
    expected = sharded(str(folder), tmp_path / "out")
    here = str(tmp_path / "here")
    make_index(uri, here, workers=2)
    assert {entry.name for entry in storage.list_files(uri)} == set(tree(folder)) - {"index.json"}
    assert read(here, tmp_path / "cache") == expected
    assert len(list((tmp_path / "cache").glob("*.tar"))) == 5, "tars in a bucket go through the cache"
    make_index(uri)
    assert read(uri, tmp_path / "cache") == expected
    verify(uri)
    refused("an index in a bucket is read on other machines", folder, bucket_server.uri + "/other")
    local = parse_index((tmp_path / "here" / "index.json").read_bytes(), "x/index.json")
    assert all(shard.file.startswith(uri) for shard in local.shards)


@pytest.mark.slow
def test_training_and_evaluating(tmp_path: Path) -> None:
    given = digits()
    for split in ("train", "test"):
        (tmp_path / split).mkdir()
        for tar in Path(given.shards).glob(f"{split}-*.tar"):
            shutil.copy(tar, tmp_path / split)
    make_index(str(tmp_path / "train"), str(tmp_path), test=str(tmp_path / "test"), workers=1)
    places = {"shards": str(tmp_path), "classifier": given.classifier, "output": str(tmp_path / "model")}
    train(TrainConfig(**places, preset="digits", epochs=1, batch_size=25, workers=1, seed=1))
    report = {"model": str(tmp_path / "model"), "shards": str(tmp_path), "output": str(tmp_path / "report")}
    evaluate(EvaluateConfig(**report, split="test", workers=1))
    content = json.loads((tmp_path / "report" / "metrics.json").read_text())
    assert "120" in json.dumps(content)


def test_a_tar_that_changes_is_noticed(bucket_server: Server, tmp_path: Path) -> None:
    folder = foreign(tmp_path / "in", 14)
    upload(folder, bucket_server.uri)
    make_index(str(folder))
    make_index(bucket_server.uri)
    path = folder / "x-001.tar"
    data = bytearray(path.read_bytes())
    place = data.index(b"a caption")
    data[place] ^= 1
    path.write_bytes(data)
    storage.write_bytes(bucket_server.uri + "/x-001.tar", bytes(data))
    with pytest.raises(ValueError, match=r"1 of 2 shards are broken.*its bytes have changed"):
        verify(str(folder))
    with pytest.raises(ValueError, match=r"x-001.tar: has changed \(sha256\)"):
        read(bucket_server.uri, tmp_path / "cache")
    path.write_bytes(data + bytes(10240))
    with pytest.raises(ValueError, match=r"x-001.tar has \d+ bytes, its index says"):
        read(str(folder), tmp_path)
    path.unlink()
    with pytest.raises(ValueError, match=r"x-001.tar: is missing"):
        read(str(folder), tmp_path)


@pytest.mark.parametrize(("cut", "workers"), [(0, 1), (700, 2), (-10240, 1)])
def test_a_truncated_tar_is_named_and_nothing_is_left(tmp_path: Path, cut: int, workers: int) -> None:
    folder = foreign(tmp_path / "in", 21)
    path = folder / "x-002.tar"
    path.write_bytes(path.read_bytes()[:cut])
    before = tree(folder)
    with pytest.raises(ValueError, match=r"x-002.tar: the tar is damaged") as error:
        make_index(str(folder), workers=workers)
    assert "\n" not in str(error.value)
    assert {name for name in tree(folder) if not name.startswith(".")} == set(before)
    refused("the tar is damaged", folder, tmp_path / "new")
    assert not [name for name in tree(tmp_path) if name.startswith("new/") and not name.startswith("new/.")]


def test_what_cannot_be_indexed_is_one_line(tmp_path: Path) -> None:
    folder = foreign(tmp_path / "in", 3)
    (tmp_path / "empty").mkdir()
    refused("no .tar files in there", tmp_path / "empty")
    refused("no such folder of tars", tmp_path / "no")
    refused("there is no such file: .*x-001.tar", f"{folder}/x-00{{0..1}}.tar")
    (folder / "train-000000.npy").write_bytes(b"somebody's features")
    refused("holds train-000000.npy, which is none of this index's", folder)
    assert (folder / "train-000000.npy").read_bytes() == b"somebody's features"
    (folder / "train-000000.npy").unlink()
    make_index(str(folder), workers=1)
    refused("is there already; delete it", folder)
    zoo.fill(tmp_path / "images", 2)
    with pytest.raises(ValueError, match="an index of another program's shards"):
        run(tmp_path / "images", folder, append=True)
    (folder / "y.tar.gz").touch()
    refused("y.tar.gz is compressed", folder, tmp_path / "index")


def test_images_that_are_none_are_listed(tmp_path: Path) -> None:
    picture = zoo.encoded(zoo.picture())
    (tmp_path / "a.tar").write_bytes(tar_of(("1.png", picture), ("2.png", b"no image"), ("../3.jpg", b"")))
    index = make_index(str(tmp_path / "a.tar"), str(tmp_path / "index"), workers=1)
    assert index.splits["train"]["samples"] == 1 and index.rejected == 2
    assert set(rejected(tmp_path / "index")) == {"2.png", "../3.jpg"}
    verify(str(tmp_path / "index"))
    assert set(read(str(tmp_path / "index"), tmp_path)) == {"1.png"}


def test_an_object_whose_name_leads_away_is_refused_before_anything(bucket_server: Server, tmp_path: Path) -> None:
    folder = foreign(tmp_path / "in", 3)
    plant(f"{bucket_server.uri}/in/../x.tar", (folder / "x-000.tar").read_bytes())
    refused("leads out of its folder", bucket_server.uri + "/in", tmp_path / "index")
    assert not (tmp_path / "index").exists()


def test_damaged_texts_are_named(tmp_path: Path) -> None:
    folder = foreign(tmp_path / "in", 3)
    make_index(str(folder), workers=1)
    path = folder / "train-000000.jsonl"
    path.write_bytes(path.read_bytes().replace(b"cat", b"dog"))
    with pytest.raises(ValueError, match=r"train-000000.jsonl is damaged"):
        read(str(folder), tmp_path)
    with pytest.raises(ValueError, match="1 of 1 shards are broken"):
        verify(str(folder))
    path.unlink()
    with pytest.raises(ValueError, match=r"train-000000.jsonl is missing"):
        read(str(folder), tmp_path)
