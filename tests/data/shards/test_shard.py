"""`must shard` on local files: what goes in comes out, once, in the same bytes each time."""

import hashlib
import io
import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import webdataset
from PIL import Image

from must.base import storage
from must.config import ShardConfig
from must.data.format import Index, load_index, load_offsets
from must.data.shards import commit
from must.data.shards.build import shard
from tests import zoo
from tests.common import ROOT


def run(source: Path | str, output: Path | str, **options: Any) -> Index:
    return shard(ShardConfig(source=str(source), output=str(output), **{"workers": 1, **options}))


def sharded(folder: Path, count: int, **options: Any) -> Index:
    """Of so many images in in/, shards in out/."""
    zoo.fill(folder / "in", count)
    return run(folder / "in", folder / "out", **options)


def refused(source: Path | str, output: Path, message: str, **options: Any) -> None:
    """`must shard` ends with one line, and the output is as it was."""
    before = output.exists() and tree(output)
    with pytest.raises(ValueError, match=message) as error:
        run(source, output, **options)
    assert "\n" not in str(error.value) and (output.exists() and tree(output)) == before


def samples(output: Path | str, split: str) -> dict[str, tuple[bytes, dict[str, Any]]]:
    """source name -> (image bytes, json), by way of the offsets."""
    found = {}
    for part in load_index(str(output)).list_shards(split):
        data = storage.read_bytes(storage.join(output, part.name))
        for image, size, text, length in load_offsets(str(output), part).tolist():
            content = json.loads(data[text : text + length])
            found[content["source"]] = data[image : image + size], content
    return found


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def rejected(output: Path) -> dict[str, str]:
    lines = (output / "rejected.jsonl").read_text().splitlines()
    return {line["source"]: line["reason"] for line in map(json.loads, lines)}


def test_webdatasets_own_reader_sees_the_same_samples(tmp_path: Path) -> None:
    zoo.fill(tmp_path / "in", 25, labels=("cat", "a dog"))
    index = run(tmp_path / "in", tmp_path / "out", labels="folder", samples_per_shard=10)
    seen = {}
    for part in index.list_shards("train"):
        for sample in webdataset.WebDataset(str(tmp_path / "out" / part.name), shardshuffle=False):
            content = json.loads(sample["json"])
            seen[content["source"]] = sample["png"], content["label"], content["sha256"]
    files = {str(path.relative_to(tmp_path / "in")): path.read_bytes() for path in (tmp_path / "in").rglob("*.png")}
    assert seen == {name: (data, name.split("/")[0], hashlib.sha256(data).hexdigest()) for name, data in files.items()}
    assert {name: data for name, (data, _) in samples(tmp_path / "out", "train").items()} == files
    assert [part.samples for part in index.shards] == [10, 10, 5]
    assert index.labels == ("a dog", "cat") and index.splits == {"train": {"samples": 25, "labelled": 25}}
    (code,) = re.findall(r"```python\n(import webdataset.*?)```", (ROOT / "docs/data.md").read_text(), re.DOTALL)
    exec(code.replace("shards/", f"{tmp_path}/out/"), found := {})
    assert sorted(label for _, label in found["pairs"]) == sorted(name.split("/")[0] for name in files)
    assert {image.size for image, _ in found["pairs"]} == {Image.open(io.BytesIO(data)).size for data in files.values()}


def test_the_bytes_depend_on_neither_workers_nor_listing_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    zoo.fill(tmp_path / "in", 40)
    names = [f"{number:05d}.png" for number in reversed(range(40))]  # other inodes, another order on disk
    zoo.put(tmp_path / "other" / "in", {name: (tmp_path / "in" / name).read_bytes() for name in names})
    trees = []
    for where, workers in ((tmp_path, 1), (tmp_path, 3), (tmp_path / "other", 2)):
        output = tmp_path / f"out-{len(trees)}"
        monkeypatch.chdir(where)
        run("in", output, workers=workers, samples_per_shard=8, split={"train": 0.7, "test": 0.3})
        trees.append(tree(output))
    assert trees[0] == trees[1]
    different = {name for name in trees[0] if trees[0][name] != trees[2].get(name)}
    assert different == {"index.json", "names-0000.npy"}  # they know the source's place


def test_samples_are_shuffled_and_splits_follow_the_content(tmp_path: Path) -> None:
    zoo.fill(tmp_path / "in", 60, labels=("a", "b"))
    run(tmp_path / "in", tmp_path / "out", split={"train": 0.5, "test": 0.5}, samples_per_shard=20)
    order = list(samples(tmp_path / "out", "train"))
    assert order != sorted(order)
    for split in ("train", "test"):
        for data, _ in samples(tmp_path / "out", split).values():
            place = int.from_bytes(hashlib.sha256(data).digest()[:8], "big") / 2**64
            assert (place < 0.5) == (split == "train")


def test_the_zoo(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = {
        "turned.jpg": zoo.turned(6),
        "ink.jpg": zoo.cmyk(),
        "grey16.png": zoo.grey16(),
        "float.tiff": zoo.float_tiff(),
        "palette.png": zoo.palette(transparent=True),
        "transparent.png": zoo.transparent(),
        "animated.gif": zoo.animated("GIF"),
        "animated.webp": zoo.animated("WEBP"),
        "a png.jpg": zoo.encoded(zoo.picture(5)),
        "no-extension": zoo.encoded(zoo.picture(6), "JPEG"),
    }
    broken = {
        "empty.jpg": b"",
        "text.png": b"hello",
        "truncated.jpg": zoo.truncated("JPEG"),
        "truncated.png": zoo.truncated("PNG"),
        "bomb.png": zoo.bomb(),
        "big.bmp": zoo.encoded(zoo.picture(7, 800, 500), "BMP"),
        "half-a-jpeg": zoo.truncated("JPEG"),
    }
    others = {"LICENSE": b"BM, the licence", "README": b"P3 is no image", "key": b"", "PHOTOS": b"MM"}
    zoo.put(tmp_path / "in", {**whole, **broken, **others, "notes.txt": b"x", ".hidden.jpg": b"x"})
    (tmp_path / "in" / "loop").symlink_to(tmp_path / "in")
    (tmp_path / "in" / "gone.jpg").symlink_to(tmp_path / "nothing")
    os.mkfifo(tmp_path / "in" / "pipe.jpg")
    index = run(tmp_path / "in", tmp_path / "out", max_rejected=0.5, max_file_mb=1)
    assert {name: data for name, (data, _) in samples(tmp_path / "out", "train").items()} == whole
    assert set(rejected(tmp_path / "out")) == {*broken, "loop", "gone.jpg", "pipe.jpg"}
    assert index.rejected == len(broken) + 3 and index.skipped == {".txt": 1, "hidden": 1, "without a suffix": 4}
    assert rejected(tmp_path / "out")["big.bmp"] == "more than 1000000 bytes"
    members = subprocess.check_output(["tar", "tf", tmp_path / "out" / "train-000000.tar"], text=True).split()
    assert sorted({name.rpartition(".")[2] for name in members}) == ["gif", "jpg", "json", "png", "tif", "webp"]
    printed = capsys.readouterr().out
    assert "rejected: 10" in printed and "1 x empty file" in printed and "1 .txt" in printed
    assert "1 x Image size (3600000000 pixels) exceeds limit of" in printed, "with its numbers"
    counts = commit.count_kinds(["1 of 2", "no", "3 of 2", "no"])
    assert counts == {"1 of 2, and the like": 2, "no": 2}


def test_odd_names_are_kept(tmp_path: Path) -> None:
    names = [b"with space.png", "grün 猫.png".encode(), b"line\nbreak.png", b"\xff\xfe.png", b"a.b.c.png", b"same.png"]
    names += [b"sub/same.png", b"same.PNG", b"{}'\"%s.png"]
    (tmp_path / "in" / "sub").mkdir(parents=True)
    for number, name in enumerate(names):
        Path(os.fsdecode(os.fsencode(tmp_path / "in") + b"/" + name)).write_bytes(zoo.encoded(zoo.picture(number)))
    run(tmp_path / "in", tmp_path / "out", samples_per_shard=4)
    assert {os.fsencode(name) for name in samples(tmp_path / "out", "train")} == set(names)


def test_too_many_rejected_files_end_the_run_and_a_higher_limit_continues_it(tmp_path: Path) -> None:
    zoo.fill(tmp_path / "in", 18)
    names = [f"bad-{number}.png" for number in range(6)]
    zoo.put(tmp_path / "in", {name: b"bad " + name.encode() for name in names})
    message = (
        r"6 of 24 files were rejected \(25\.00%\), more than 5 files and --max-rejected 0\.01 allow, such as "
        r"(bad-\d\.png: not an image of a known format; ){3}all are in .*rejected\.jsonl; .* --max-rejected 0\.26: "
    )
    with pytest.raises(ValueError, match=message):
        run(tmp_path / "in", tmp_path / "out")
    assert set(rejected(tmp_path / "out")) == set(names)
    assert not (tmp_path / "out" / "index.json").exists()
    assert list((tmp_path / "out" / ".shard").glob("chunk-*.npz"))
    index = run(tmp_path / "in", tmp_path / "out", max_rejected=0.26)
    (tmp_path / "in" / names[0]).unlink()
    assert run(tmp_path / "in", tmp_path / "five").rejected == 5  # more than 1%, but few
    assert index.splits["train"]["samples"] == 18 and not (tmp_path / "out" / ".shard").exists()


def test_without_a_readable_image_there_is_no_index(tmp_path: Path) -> None:
    zoo.put(tmp_path / "in", {"a.jpg": b"x"})
    with pytest.raises(ValueError, match=rf"\A.*{tmp_path}/in.*\Z"):
        run(tmp_path / "in", tmp_path / "out", max_rejected=1)
    assert not (tmp_path / "out" / "index.json").exists()
    assert set(rejected(tmp_path / "out")) == {"a.jpg"}


def test_an_output_that_is_a_file_is_one_line(tmp_path: Path) -> None:
    zoo.fill(tmp_path / "in", 2)
    (tmp_path / "file").write_bytes(b"x")
    for output in (tmp_path / "file", tmp_path / "file" / "below"):
        refused(tmp_path / "in", output, "cannot be written")
    assert (tmp_path / "file").read_bytes() == b"x"


def test_a_finished_run_is_neither_repeated_nor_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sharded(tmp_path, 5)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    run(tmp_path / "in", tmp_path / "out")
    assert "nothing to do" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()} == before
    zoo.fill(tmp_path / "in", 1, start=100)
    refused(tmp_path / "in", tmp_path / "out", "already holds shards of other images or settings")
