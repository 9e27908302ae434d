"""Every kind of source: manifests, archives, WebDataset shards."""

import io
import json
import os
import shutil
import tarfile
from pathlib import Path

import pytest
import webdataset

from must.data.shards.listing import open_source
from must.data.sources.archives import expand_range, split_key
from must.data.sources.files import ListingReport, describe_no_images
from tests import zoo
from tests.data.shards.test_shard import refused, rejected, run, samples
from tests.zoo import tar_of, zip_of


def labels_of(output: Path, split: str = "train") -> dict[str, str | None]:
    return {name: content["label"] for name, (_, content) in samples(output, split).items()}


@pytest.mark.parametrize("head", ["path,label,split", "image,class,split", "path;label;split", "path\tlabel\tsplit"])
def test_a_csv_names_paths_labels_and_splits(tmp_path: Path, head: str, capsys: pytest.CaptureFixture[str]) -> None:
    zoo.fill(tmp_path / "in", 6)
    (tmp_path / "elsewhere.png").write_bytes(zoo.encoded(zoo.picture(50)))
    rows = [
        head,
        '"in/00000.png"|"a, quoted ""cat"""|test',
        "in/00001.png|dog|train",
        "in/00002.png||",
        f"{tmp_path / 'elsewhere.png'}|dog|validation",
        "in/missing.png|dog|train",
    ]
    rows = [row.replace("|", head[-6]) for row in rows]
    (tmp_path / "list.csv").write_text("\ufeff" + "\r\n".join(rows), encoding="utf-8")
    index = run(tmp_path / "list.csv", tmp_path / "out", labels="csv", max_rejected=0.5)
    assert labels_of(tmp_path / "out", "test") == {"in/00000.png": 'a, quoted "cat"'}
    assert labels_of(tmp_path / "out") == {"in/00001.png": "dog", "in/00002.png": None}
    assert labels_of(tmp_path / "out", "validation") == {str(tmp_path / "elsewhere.png"): "dog"}
    assert rejected(tmp_path / "out") == {"in/missing.png": "there is no such file"}
    assert index.labels == ('a, quoted "cat"', "dog")
    run(tmp_path / "list.csv", tmp_path / "unlabelled", max_rejected=0.5)
    assert set(labels_of(tmp_path / "unlabelled").values()) == {None}
    assert capsys.readouterr().out.count("4 labels are not read; --labels csv reads them") == 1


@pytest.mark.parametrize("head, label", [("image,class", None), ("path,label", "none of these")])
def test_none_of_the_classes_in_our_own_table_is_no_label(tmp_path: Path, head: str, label: str | None) -> None:
    zoo.fill(tmp_path, 2)
    (tmp_path / "list.csv").write_text(f"{head}\n00000.png,cat\n00001.png,none of these\n")
    run(tmp_path / "list.csv", tmp_path / "out", labels="csv")
    assert labels_of(tmp_path / "out") == {"00000.png": "cat", "00001.png": label}


def test_jsonl_and_a_content_that_is_listed_in_two_splits(tmp_path: Path) -> None:
    zoo.fill(tmp_path / "in", 4)
    shutil.copy(tmp_path / "in" / "00000.png", tmp_path / "in" / "again.png")
    rows = [{"path": "in/00000.png", "split": "train", "label": 7}, {"path": "in/again.png", "split": "test"}]
    rows += [{"path": "in/00001.png", "split": "train"}]
    (tmp_path / "list.jsonl").write_text("\n".join(map(json.dumps, rows)))
    run(tmp_path / "list.jsonl", tmp_path / "out", labels="csv")
    assert set(samples(tmp_path / "out", "train")) == {"in/00001.png"}
    assert set(samples(tmp_path / "out", "test")) == {"in/again.png"}
    assert rejected(tmp_path / "out") == {"in/00000.png": "same content as another image in the split test"}


@pytest.mark.parametrize(
    ("source", "content", "message"),
    [
        ("list.csv", "file,label\na.png,x\n", "must name the columns path"),
        ("list.csv", "path,label\n,x\n", "line 2: no 'path'"),
        ("list.jsonl", '["a.png"]\n', "line 1: not a JSON object"),
        ("list.csv", "path\n", "no images"),
        ("file.bin", "x", "expected a folder of images"),
        ("list.csv", None, "there is no such file"),
        ("nowhere/{0..3}.tar", None, "there is no such file: .*nowhere/0.tar"),
        ("x-{0..99999999}.tar", None, "matches over 100000 files"),
        ("nowhere.zip", None, "there is no such file"),
        ("nowhere", None, "there is no such folder or file"),
        ("empty", None, "no images in there$"),
        ("texts", None, "no images in there, .*only other files: 1 .txt"),
        ("pipe.jsonl", None, r"pipe\.jsonl: not a file"),
        ("pipe.zip", None, r"pipe\.zip: not a file"),
    ],
)
def test_a_source_without_images_is_one_line(tmp_path: Path, source: str, content: str | None, message: str) -> None:
    (tmp_path / "empty").mkdir()
    zoo.put(tmp_path / "texts", {"a.txt": b""})
    for name in ("pipe.jsonl", "pipe.zip"):
        os.mkfifo(tmp_path / name)
    if content is not None:
        (tmp_path / source).write_text(content)
    refused(tmp_path / source, tmp_path / "out", message, labels="csv")
    refused(tmp_path / source, tmp_path / "out", message, labels="csv", append=True)
    zoo.fill(tmp_path / "in", 6)
    options = {"test_source": str(tmp_path / source), "labels": "csv"}
    refused(tmp_path / "in", tmp_path / "out", message, **options)


def test_test_images_of_which_none_can_be_decoded_are_refused(tmp_path: Path) -> None:
    """Fewer of them are rejected than end a run."""
    zoo.fill(tmp_path / "in", 6)
    zoo.put(tmp_path / "test", {"cat/a.png": b"no image"})
    with pytest.raises(ValueError, match=r"none of the files of .*test is an image; all reasons are in "):
        run(tmp_path / "in", tmp_path / "out", test_source=str(tmp_path / "test"), labels="folder")


def make_archive(folder: Path, kind: str) -> Path:
    return Path(shutil.make_archive(str(folder.parent / "archive"), kind, folder))


def test_an_image_that_is_listed_twice_has_one_label(tmp_path: Path) -> None:
    zoo.fill(tmp_path, 3)
    table = tmp_path / "list.csv"
    table.write_text("image,class\n00000.png,cat\n00001.png,dog\n00000.png,dog\n")
    message = "--source .*list.csv: '00000.png' is there twice, with the labels 'cat' and 'dog'"
    refused(table, tmp_path / "out", message, labels="csv")
    table.write_text("image,class\n00000.png,cat\n00001.png,dog\n00000.png,cat\n")
    assert run(table, tmp_path / "out", labels="csv").duplicates == 1


@pytest.mark.parametrize("labels", ["folder", "csv"])
def test_labels_in_two_forms_of_unicode_are_one(tmp_path: Path, labels: str) -> None:
    zoo.fill(tmp_path / "in", 4, labels=("cafe\u0301", "caf\xe9"))
    rows = [f"{path},{path.parent.name}" for path in (tmp_path / "in").rglob("*.png")]
    (tmp_path / "list.csv").write_text("\n".join(["image,class", *rows]))
    source = tmp_path / ("in" if labels == "folder" else "list.csv")
    assert run(source, tmp_path / "out", labels=labels).labels == ("caf\xe9",)


@pytest.mark.parametrize("kind", ["tar", "bztar", "xztar", "zip"])
def test_an_archive_gives_what_its_folder_gives(tmp_path: Path, kind: str) -> None:
    zoo.fill(tmp_path / "in", 20, labels=("cat", "grün 猫"))
    (tmp_path / "in" / "notes.txt").write_text("x")
    (tmp_path / "in" / "bad.jpg").write_bytes(b"bad")
    options = {"labels": "folder", "max_rejected": 1, "workers": 2, "samples_per_shard": 7}
    folder = run(tmp_path / "in", tmp_path / "from folder", **options)
    index = run(make_archive(tmp_path / "in", kind), tmp_path / "out", **options)
    assert samples(tmp_path / "out", "train") == samples(tmp_path / "from folder", "train")
    assert rejected(tmp_path / "out") == rejected(tmp_path / "from folder")
    assert (index.skipped, index.labels) == (folder.skipped, folder.labels)
    assert [shard.sha256 for shard in index.shards] == [shard.sha256 for shard in folder.shards]


def test_names_in_archives_lead_nowhere(tmp_path: Path) -> None:
    evil = ["../../escaped.png", "/absolute.png", "a/../../b.png"]
    data = zoo.encoded(zoo.picture())
    (tmp_path / "evil.tar").write_bytes(tar_of(*((name, data) for name in evil)))
    with tarfile.open(tmp_path / "evil.tar", "a") as tar:
        for name, kind in (("link", tarfile.SYMTYPE), ("hard", tarfile.LNKTYPE), ("device", tarfile.CHRTYPE)):
            member = tarfile.TarInfo(f"{name}.png")
            member.type, member.linkname = kind, "/etc/passwd"
            tar.addfile(member)
    (tmp_path / "evil.zip").write_bytes(zip_of(*((name, data) for name in evil)))
    (tmp_path / "inside").mkdir()
    for suffix in ("tar", "zip"):
        output = tmp_path / "inside" / suffix
        run(tmp_path / f"evil.{suffix}", output, max_rejected=1)
        assert set(samples(output, "train")) == set(evil)
        with tarfile.open(output / "train-000000.tar") as tar:
            assert all("/" not in name and ".." not in name for name in tar.getnames())
    assert set(rejected(tmp_path / "inside" / "tar")) == {"link.png", "hard.png", "device.png"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["evil.tar", "evil.zip", "inside"]


def test_a_damaged_member_of_a_zip_is_rejected(tmp_path: Path) -> None:
    zoo.fill(tmp_path / "in", 10)
    data = bytearray(make_archive(tmp_path / "in", "zip").read_bytes())
    data[len(data) // 4] ^= 0xFF  # inside a member's compressed bytes
    (tmp_path / "flipped.zip").write_bytes(data)
    run(tmp_path / "flipped.zip", tmp_path / "out", max_rejected=0.1)
    assert len(rejected(tmp_path / "out")) == 1 and "damaged in the archive" in str(rejected(tmp_path / "out"))


def test_a_tar_that_is_read_halfway_is_damaged(tmp_path: Path) -> None:
    """tarfile stops silently at a header it cannot read, at a cut between members and between joined archives."""
    zoo.fill(tmp_path / "in", 10)
    whole = make_archive(tmp_path / "in", "tar").read_bytes()
    with tarfile.open(fileobj=io.BytesIO(whole)) as tar:
        sixth = tar.getmembers()[5].offset
    flipped = bytearray(whole)
    flipped[sixth + 2] ^= 1
    for number, data in enumerate((bytes(flipped), whole[:sixth], whole[: sixth + 100], whole + whole)):
        (tmp_path / f"{number}.tar").write_bytes(data)
        message = rf"{number}.tar: the archive is damaged: .* at byte \d+"
        refused(tmp_path / f"{number}.tar", tmp_path / "out", message)
    (tmp_path / "padded.tar").write_bytes(whole + bytes(100_000))
    assert run(tmp_path / "padded.tar", tmp_path / "out").list_shards("train")[0].samples == 10


def test_a_sparse_member_is_rejected_for_its_bytes_are_not_those_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(tar_of(("fine.png", zoo.encoded(zoo.picture()))))
    member, data = tarfile.TarInfo("sparse.png"), b"1\n0\n10\n".ljust(512, b"\0") + bytes(10)
    member.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": "99"}
    member.size = len(data)
    with tarfile.open(tmp_path / "a.tar", "a", format=tarfile.PAX_FORMAT) as tar:
        tar.addfile(member, io.BytesIO(data))
    run(tmp_path / "a.tar", tmp_path / "out", max_rejected=0.5)
    assert rejected(tmp_path / "out") == {"sparse.png": "a link, device or sparse file inside an archive"}


def test_a_zip_bomb_is_not_expanded(tmp_path: Path) -> None:
    data = bytearray(zip_of(("zeros.png", bytes(30_000_000)), ("fine.png", zoo.encoded(zoo.picture()))))
    place = data.index(b"PK\x01\x02")
    data[place + 24 : place + 28] = (1000).to_bytes(4, "little")  # the directory lies about the size
    (tmp_path / "bomb.zip").write_bytes(data)
    run(tmp_path / "bomb.zip", tmp_path / "out", max_rejected=0.5, max_file_mb=1)
    assert rejected(tmp_path / "out") == {"zeros.png": "damaged in the archive: wrong checksum"}


def test_webdataset_shards_are_a_source_with_their_labels(tmp_path: Path) -> None:
    (tmp_path / "wds").mkdir()
    with webdataset.ShardWriter(str(tmp_path / "wds" / "x-%03d.tar"), maxcount=4, verbose=0) as writer:
        for number in range(10):
            image = zoo.encoded(zoo.picture(number))
            writer.write({"__key__": f"s{number}", "png": image, "cls": number % 3, "txt": "hi"})
    for source in (tmp_path / "wds", tmp_path / "wds" / "x-{000..002}.tar"):
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        assert run(source, tmp_path / "out", labels="csv").skipped == {".txt": 10}
        found = {name.partition("/")[2]: label for name, label in labels_of(tmp_path / "out").items()}
        assert found == {f"s{number}.png": str(number % 3) for number in range(10)}
    again = run(tmp_path / "out", tmp_path / "again", labels="csv")
    assert again.labels == ("0", "1", "2") and again.splits["train"]["labelled"] == 10


def make_zip(path: Path, *numbers: int) -> None:
    members = [(f"{place}.png", zoo.encoded(zoo.picture(number))) for place, number in enumerate(numbers)]
    zoo.put(path.parent, {path.name: zip_of(*members)})


def test_archives_of_one_name_are_told_apart_by_their_folders(tmp_path: Path) -> None:
    make_zip(tmp_path / "in" / "w1" / "images.zip", 0, 1)
    make_zip(tmp_path / "in" / "w2" / "images.zip", 2, 3)
    for output in ("out", "braces"):
        run(tmp_path / "in" / ("" if output == "out" else "{w1,w2}/images.zip"), tmp_path / output, append=True)
        names = {f"w{week}/images.zip/{number}.png" for week in (1, 2) for number in (0, 1)}
        assert set(labels_of(tmp_path / output)) == names
    make_zip(tmp_path / "in" / "w3" / "images.zip", 4)
    assert run(tmp_path / "in", tmp_path / "out", append=True).splits["train"]["samples"] == 5


def test_other_files_beside_archives_are_as_those_beside_images(tmp_path: Path) -> None:
    """Hidden ones, as macOS leaves them on other machines' disks, and those without an extension."""
    make_zip(tmp_path / "in" / "cat" / "images.zip", 0)
    zoo.put(tmp_path / "in", dict.fromkeys(("._images.zip", "._x.png", "list.txt", "README"), b"Mac OS X"))
    zoo.put(tmp_path / "in" / ".Trash-1000" / "files", {"gone.png": zoo.encoded(zoo.picture(3))})
    (tmp_path / "in" / "cat" / "5f2a").write_bytes(zoo.encoded(zoo.picture(1)))
    index = run(tmp_path / "in", tmp_path / "out", labels="folder")
    assert labels_of(tmp_path / "out") == {"cat/images.zip/0.png": None, "cat/5f2a": "cat"}
    assert rejected(tmp_path / "out") == {} and index.skipped == {"hidden": 3, ".txt": 1, "without a suffix": 1}
    (tmp_path / "in" / "x.png").write_bytes(zoo.encoded(zoo.picture(2)))
    run(tmp_path / "in", tmp_path / "images", max_rejected=0.5)
    assert set(labels_of(tmp_path / "images")) == {"cat/5f2a", "x.png"}


def test_neighbours_of_a_key_are_webdatasets_samples(tmp_path: Path) -> None:
    names = ["a/1.png", "a/1.cls", "a/2.cls", "a/2.PNG", "b/1.png", "b/1.seg.png", "b/1.json", "3.png"]
    labels = {"a/1.cls": b"cat", "a/2.cls": b"dog", "b/1.json": b'{"label": "cow"}'}
    contents = {name: labels.get(name) or zoo.encoded(zoo.picture(len(name))) for name in names}
    (tmp_path / "x.tar").write_bytes(tar_of(*contents.items()))
    theirs = {}
    for sample in webdataset.WebDataset(str(tmp_path / "x.tar"), shardshuffle=False):
        known = sample.get("cls") or json.loads(sample.get("json", "{}")).get("label")
        for suffix in sample.keys() & {"png", "seg.png"}:
            theirs[sample["__key__"], suffix] = known.decode() if isinstance(known, bytes) else known
    source = open_source(str(tmp_path / "x.tar"), "csv", "--source")
    ours = {split_key(item.name): item.label for item in source.items(ListingReport(lambda name, reason: None))}
    assert ours == theirs and ours["b/1", "seg.png"] == "cow" and ours["3", "png"] is None


@pytest.mark.parametrize(
    ("pattern", "files"),
    [
        ("x-{08..11}.tar", ["x-08.tar", "x-09.tar", "x-10.tar", "x-11.tar"]),
        ("{a,b}/{0..1}.tar", ["a/0.tar", "a/1.tar", "b/0.tar", "b/1.tar"]),
        ("{a,b{0..1}}.tar", ["a.tar", "b0.tar", "b1.tar"]),
        ("x.tar", ["x.tar"]),
        ("x{1.tar", ["x{1.tar"]),
        ("{x}.tar", ["{x}.tar"]),
        (r"C:\{0..1}.tar", [r"C:\0.tar", r"C:\1.tar"]),
    ],
)
def test_braces_are_ranges_and_lists(pattern: str, files: list[str]) -> None:
    assert expand_range(pattern) == files


def test_of_many_kinds_of_other_files_the_most_frequent_are_named() -> None:
    told = describe_no_images({f".k{number:03}": 1 for number in range(300)} | {".txt": 7})
    assert told.endswith("1 .k008, 7 .txt and 291 other kinds") and len(told) < 250
