"""Archives, manifests, class files of anybody's making: a result, a rejected item, or one line that names the file."""

import bz2
import gzip
import json
import lzma
import os
import tarfile
import zipfile
from collections.abc import Callable
from itertools import chain
from pathlib import Path

import pytest

from must.base.parameters import read_yaml
from must.base.program import WRONG_INPUT, find_exit_code, format_error
from must.config import PredictConfig, TrainConfig
from must.data.sources import archives
from must.data.sources.archives import Archives, Headers, read_zip_member
from must.data.sources.files import ListingReport, UnreadableError
from must.model.classifier import load_class_set, load_text_classifier
from must.model.description import load_description
from must.prediction.predict import predict
from tests import zoo
from tests.data.shards.test_shard import refused, rejected, run, samples
from tests.zoo import tar_of, zip_of

DEEP = "[" * 200_000
PICTURE = zoo.encoded(zoo.picture())


def negative_size() -> bytes:
    """A tar whose second member says that it has -1536 bytes: that is where the first one begins."""
    member = tarfile.TarInfo("b.png")
    member.pax_headers = {"size": "-1536"}
    return tar_of(("a.png", PICTURE))[: -(-len(PICTURE) // 512) * 512 + 512] + member.tobuf() + bytes(10240)


DAMAGED = {
    "a.tar.bz2": bz2.compress(PICTURE * 9)[:200] + bytes(99),
    "b.tar.bz2": b"BZh9" + bytes(99),
    "c.tar.xz": lzma.compress(PICTURE)[:-20] + bytes(20),
    "d.tar.gz": b"\x1f\x8b\x08" + bytes(99),
    "k.tar.gz": gzip.compress(tar_of(("a.png", PICTURE)))[:-20],
    "l.zip": zip_of(("a.png", PICTURE))[:-30],
    "e.tar": negative_size(),
    "i.zip": b"PK\x05\x06" + b"\xff" * 18,
    "j.tar.xz": lzma.compress(bytes(3_000_000)),
}


@pytest.mark.timeout(60)
@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_archive_is_named(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "EXPANDED", 1_000_000)
    (tmp_path / name).write_bytes(DAMAGED[name])
    refused(tmp_path / name, tmp_path / "out", rf"^--source {tmp_path}/{name}: the archive is damaged.{{0,300}}$")


def test_a_negative_size_is_damage_whatever_tarfile_makes_of_it(tmp_path: Path) -> None:
    """Python 3.13 ends there as at the archive's end; 3.11.7 reads the same member for ever."""
    (tmp_path / "a.tar").write_bytes(negative_size())
    with Headers(tmp_path / "a.tar") as file, tarfile.open(fileobj=file, mode="r:") as tar:
        assert tar.next() is not None
        with pytest.raises(tarfile.ReadError, match="negative size"):
            tar.next()
    name = "x" * 100 + " size=-3.png"
    (tmp_path / "b.tar").write_bytes(tar_of((name, PICTURE)))
    assert set(samples_of(tmp_path / "b.tar", tmp_path)) == {name}


ENDLESS = ("a.csv", "a.jsonl", "a.tar", "a.tar.gz", "a.zip", "a.parquet", "a", "{a,b}.tar", "{a,b}.parquet", "folder")


@pytest.mark.timeout(60)
@pytest.mark.parametrize("name", ENDLESS)
def test_a_link_to_a_device_is_no_source(tmp_path: Path, name: str) -> None:
    for file in (*ENDLESS[:7], "b.tar", "b.parquet"):
        (tmp_path / file).symlink_to("/dev/zero")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "a.png").symlink_to("/dev/zero")
    with pytest.raises((ValueError, OSError)) as error:
        run(tmp_path / name, tmp_path / "out")
    line = format_error(error.value)
    assert str(tmp_path) in line and "nowhere" not in line and len(line) < 500


@pytest.mark.timeout(60)
def test_a_link_to_a_device_is_no_class_file_model_or_settings(tmp_path: Path) -> None:
    def classify(model: str) -> None:
        predict(PredictConfig(model=model, images=["-"]))

    for name in ("c.yaml", "c.txt", "m.onnx", "c.safetensors", "model.json"):
        (tmp_path / name).symlink_to("/dev/zero")
    os.mkfifo(tmp_path / "pipe.onnx")
    readers: list[tuple[Callable[[str], object], str]] = [
        (load_class_set, "c.yaml"),
        (load_class_set, "c.txt"),
        (load_text_classifier, "c.safetensors"),
        (lambda path: load_description(str(tmp_path)), "model.json"),
        (lambda path: read_yaml(TrainConfig, path), "c.yaml"),
        (classify, "m.onnx"),
        (classify, "pipe.onnx"),
    ]
    for read, name in readers:
        with pytest.raises((ValueError, OSError)) as error:
            read(str(tmp_path / name))
        assert str(tmp_path / name) in format_error(error.value) and find_exit_code(error.value) == WRONG_INPUT


def samples_of(source: Path, folder: Path) -> list[str]:
    run(source, folder / "out", max_rejected=1)
    return list(samples(folder / "out", "train"))


def test_a_sample_with_deep_json_has_no_label(tmp_path: Path) -> None:
    texts = {"1.json": DEEP.encode(), "2.json": b'{"label": ' + b"[" * 700 + b"]" * 700 + b"}", "3.cls": b"cat"}
    members = [((f"{name[0]}.png", PICTURE), (name, text)) for name, text in texts.items()]
    (tmp_path / "a.tar").write_bytes(tar_of(*chain(*members)))
    run(tmp_path / "a.tar", tmp_path / "out", labels="csv")
    labels = {name: content["label"] for name, (_, content) in samples(tmp_path / "out", "train").items()}
    assert labels == {"1.png": None, "2.png": None, "3.png": "cat"}


def test_no_more_of_a_zips_member_is_read_than_an_image_may_have(tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_bytes(zip_of(("a.png", os.urandom(5_000_000)), method=zipfile.ZIP_STORED))
    path = str(tmp_path / "a.zip")
    (item,) = Archives(path, [path], "none", "--source").items(ListingReport(lambda *_: None))
    assert len(read_zip_member(path, item, 1000)) == 1000
    for beyond in (1 << 40, 1 << 63, (1 << 64) - 1):
        with pytest.raises(UnreadableError, match="damaged in the archive"):
            read_zip_member(path, item._replace(locator=[0, beyond, *item.locator[2:]]), 1000)


@pytest.mark.parametrize(
    ("line", "name", "reason"),
    [
        (DEEP, "line 2", "not a JSON object"),
        ('{"path": ', "line 2", "not a JSON object"),
        ('{"path": "a.png", "label": [[[]]]}', "line 2: a.png", "the label is not text"),
        ('{"path": "a.png", "label": ' + "9" * 5000 + "}", "line 2", "not a JSON object"),
        ('{"path": "a.png", "split": {"a": 1}}', "line 2: a.png", "not a split name (lower-case, digits, _)"),
        ('{"path": 7}', "line 2: 7", "no 'path'; the columns are path[,label][,split]"),
        (
            '{"path": "https://me:PASSWORD@host/a.png?sig=SIGNATURE"}',
            "line 2: https://***@host/a.png?***",
            "only local paths and gs://, s3:// and az:// are read",
        ),
    ],
)
def test_a_bad_line_of_a_manifest_is_rejected_and_named(tmp_path: Path, line: str, name: str, reason: str) -> None:
    lines = f'{{"path": "first.png"}}\n{line}'
    zoo.put(tmp_path, {"first.png": PICTURE, "list.jsonl": lines.encode()})
    assert set(samples_of(tmp_path / "list.jsonl", tmp_path)) == {"first.png"}
    assert rejected(tmp_path / "out") == {f"list.jsonl {name}": reason}
    assert not [path for path in (tmp_path / "out").rglob("*") if path.is_file() and b"PASSWORD" in path.read_bytes()]


def test_a_name_that_no_file_can_have_is_a_rejected_item(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(PICTURE)
    odd = tmp_path / os.fsdecode(b"caf\xe9.png")
    odd.write_bytes(zoo.encoded(zoo.picture(5)))
    names = ["a.png", "a\0.png", "\ud800.png", odd.name, "x" * 5000]
    (tmp_path / "list.jsonl").write_text("\n".join(json.dumps({"path": name}) for name in names))
    assert set(samples_of(tmp_path / "list.jsonl", tmp_path)) == {"a.png", odd.name}
    found = rejected(tmp_path / "out")
    assert found["list.jsonl line 2: a?.png"] == found["list.jsonl line 3: ?.png"] == "no name that a file can have"
    assert found["x" * 200 + "..."] == "a name of more than 4096 bytes"


CLASS_FILES = {
    "aliases": "classes:\n- &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
        f"- &{name} [{','.join(['*' + last] * 9)}]\n" for last, name in zip("abcdefgh", "bcdefghi", strict=True)
    ) + "templates: [*i]\n",
    "deep": "classes: " + DEEP,
    "no date": "classes: [2020-13-45, b]",
    "half a character": 'classes: ["\\ud800", b]',
    "prompts": "classes: [{name: a, prompts: [{}]}, b]",
    "a list as a template": "classes: [a, b]\ntemplates: [[{}]]",
    "keys": "classes: [a, b]\n" + "k" * 100_000 + ": 1\n",
    "one twice": "classes: [" + "a" * 99_000 + ", " + "a" * 99_000 + "]",
    "bytes": "classes: [!!binary aGk=, b]",
    "base 60": "classes: [1" + ":10" * 9000 + ", b]",
    "a name as a long number": "classes: [{name: 0x" + "f" * 48_000 + "}, b]",
    "twice with an escape": 'classes: ["a\\e[2J", "a\\e[2J"]',
    "a key of bytes": "classes: [a, b]\n!!binary aGk=: 1\n",
}  # fmt: skip


@pytest.mark.timeout(60)
@pytest.mark.parametrize("kind", CLASS_FILES)
def test_a_class_file_that_is_none_is_one_line(tmp_path: Path, kind: str) -> None:
    (tmp_path / "classes.yaml").write_text(CLASS_FILES[kind])
    with pytest.raises(ValueError, match=rf"^--classes {tmp_path}/classes.yaml: .{{1,800}}$"):
        load_class_set(str(tmp_path / "classes.yaml"))
