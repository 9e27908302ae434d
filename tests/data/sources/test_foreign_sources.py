"""Archives, manifests, class files of anybody's making: a result, a rejected item, or one line that names the file."""

from __future__ import annotations

import bz2
import io
import json
import lzma
import os
import tarfile
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from must.base.exits import WRONG_INPUT, code_of, line_of
from must.base.names import Headers
from must.base.parameters import load
from must.config import PredictConfig, TrainConfig
from must.data.sources import archives
from must.data.sources.archives import Archives, unzipped
from must.data.sources.base import ListingReport, UnreadableError
from must.data.sources.files import Manifest
from must.deploy.predict.images import predict_images
from must.method.model.bundle import load_description
from must.method.model.classifier import load_class_set, load_text_classifier, make_class_set
from tests import zoo
from tests.data.shards.test_shard import rejected, run, samples
from tests.data.tars import tar_of

DEEP = "[" * 200_000
PICTURE = zoo.encoded(zoo.picture())
MANY = settings(max_examples=60)
JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=9)),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


def one_line(error: pytest.ExceptionInfo[ValueError], name: str) -> None:
    assert name in str(error.value) and "\n" not in str(error.value) and len(str(error.value)) < 1000


def negative_size() -> bytes:
    """A tar whose second member says that it has -1536 bytes: that is where the first one begins."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, headers in (("a.png", {}), ("b.png", {"size": "-1536"})):
            member = tarfile.TarInfo(name)
            member.pax_headers, member.size = headers, len(PICTURE)
            tar.addfile(member, io.BytesIO(PICTURE))
    return buffer.getvalue()


def long_name(size: int) -> bytes:
    """A tar whose first member is a name, of `size` bytes as it says."""
    header = tarfile.TarInfo("././@LongLink")
    header.type, header.size = tarfile.GNUTYPE_LONGNAME, size
    return header.tobuf(tarfile.GNU_FORMAT) + bytes(20_000)


def many_headers() -> bytes:
    """Pax headers, one before the other, each of which tarfile reads by calling itself."""
    header = tarfile.TarInfo("x")
    header.type, header.size = tarfile.XHDTYPE, 0
    return header.tobuf() * 3000


DAMAGED = {
    "a.tar.bz2": bz2.compress(PICTURE * 9)[:200] + bytes(99),
    "b.tar.bz2": b"BZh9" + bytes(99),
    "c.tar.xz": lzma.compress(PICTURE)[:-20] + bytes(20),
    "d.tar.gz": b"\x1f\x8b\x08" + bytes(99),
    "e.tar": negative_size(),
    "f.tar": long_name(8**11 - 1),
    "g.tar": many_headers(),
    "h.tar": long_name(20_000)[:900],
    "i.zip": b"PK\x05\x06" + b"\xff" * 18,
    "j.tar.xz": lzma.compress(bytes(3_000_000)),
}


@pytest.mark.timeout(60)
@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_archive_is_named(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "EXPANDED", 1_000_000)
    (tmp_path / name).write_bytes(DAMAGED[name])
    with pytest.raises(ValueError, match="the archive is damaged") as error:
        run(tmp_path / name, tmp_path / "out")
    one_line(error, name)
    assert not (tmp_path / "out").exists()


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
    line = line_of(error.value)
    assert str(tmp_path) in line and "nowhere" not in line and len(line) < 500


@pytest.mark.timeout(60)
def test_a_link_to_a_device_is_no_class_file_model_or_settings(tmp_path: Path) -> None:
    def refused(read: Callable[[], object], name: str) -> None:
        with pytest.raises((ValueError, OSError)) as error:
            read()
        assert str(tmp_path / name) in line_of(error.value) and code_of(error.value) == WRONG_INPUT

    for name in ("c.yaml", "c.txt", "m.onnx", "c.safetensors", "model.json"):
        (tmp_path / name).symlink_to("/dev/zero")
    os.mkfifo(tmp_path / "pipe.onnx")
    refused(lambda: load_class_set(str(tmp_path / "c.yaml")), "c.yaml")
    refused(lambda: load_class_set(str(tmp_path / "c.txt")), "c.txt")
    refused(lambda: load_text_classifier(str(tmp_path / "c.safetensors")), "c.safetensors")
    refused(lambda: load_description(str(tmp_path)), "model.json")
    refused(lambda: load(TrainConfig, {}, str(tmp_path / "c.yaml")), "c.yaml")
    for model in ("m.onnx", "pipe.onnx"):
        config = PredictConfig(model=str(tmp_path / model), images=["a.png"])
        refused(partial(predict_images, config), model)


def samples_of(source: Path, folder: Path) -> list[str]:
    run(source, folder / "out", max_rejected=1)
    return list(samples(folder / "out", "train"))


def test_a_sample_with_deep_json_has_no_label(tmp_path: Path) -> None:
    data = tar_of(
        ("1.png", PICTURE),
        ("1.json", DEEP.encode()),
        ("2.png", zoo.encoded(zoo.picture(2))),
        ("2.json", b'{"label": ' + b"[" * 700 + b"]" * 700 + b"}"),
        ("3.png", zoo.encoded(zoo.picture(3))),
        ("3.cls", b"cat"),
    )
    (tmp_path / "a.tar").write_bytes(data)
    run(tmp_path / "a.tar", tmp_path / "out", labels="csv")
    labels = {name: content["label"] for name, (_, content) in samples(tmp_path / "out", "train").items()}
    assert labels["1.png"] is None and labels["3.png"] == "cat" and len(labels) == 3


def test_no_more_of_a_zips_member_is_read_than_an_image_may_have(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("a.png", os.urandom(5_000_000), zipfile.ZIP_STORED)
    path = str(tmp_path / "a.zip")
    (item,) = Archives(path, [path], "none", "--source").items(ListingReport(lambda *_: None))
    _, start, size, method, checksum = item.locator
    assert len(unzipped(str(tmp_path / "a.zip"), start, size, method, checksum, 1000)) == 1000
    with pytest.raises(UnreadableError, match="damaged in the archive"):
        unzipped(str(tmp_path / "a.zip"), (tmp_path / "a.zip").stat().st_size - 29, size, method, checksum, 1000)


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
def test_a_bad_line_of_a_manifest_is_a_rejected_item_and_named(
    tmp_path: Path, line: str, name: str, reason: str
) -> None:
    (tmp_path / "first.png").write_bytes(PICTURE)
    (tmp_path / "list.jsonl").write_text(f'{{"path": "first.png"}}\n{line}')
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
    "no number": "classes: [!!int '', b]",
    "half a character": 'classes: ["\\ud800", b]',
    "prompts": "classes: [{name: a, prompts: [{}]}, b]",
    "a list as a template": "classes: [a, b]\ntemplates: [[{}]]",
    "keys": "classes: [a, b]\n" + "k" * 100_000 + ": 1\n",
    "one twice": "classes: [" + "a" * 99_000 + ", " + "a" * 99_000 + "]",
    "bytes": "classes: [!!binary aGk=, b]",
    "a long number": "classes: [0x" + "f" * 48_000 + ", b]",
    "base 60": "classes: [1" + ":10" * 9000 + ", b]",
    "a name as a long number": "classes: [{name: 0x" + "f" * 48_000 + "}, b]",
    "twice with an escape": 'classes: ["a\\e[2J", "a\\e[2J"]',
    "a key of bytes": "classes: [a, b]\n!!binary aGk=: 1\n",
}  # fmt: skip


@pytest.mark.timeout(60)
@pytest.mark.parametrize("kind", CLASS_FILES)
def test_a_class_file_that_is_none_is_one_line(tmp_path: Path, kind: str) -> None:
    (tmp_path / "classes.yaml").write_text(CLASS_FILES[kind])
    with pytest.raises(ValueError, match="--classes") as error:
        load_class_set(str(tmp_path / "classes.yaml"))
    one_line(error, "classes.yaml")
    assert str(error.value).startswith(f"--classes {tmp_path}/classes.yaml: ")


@MANY
@given(JSON, JSON)
def test_any_classes_and_templates_are_a_set_or_one_line(classes: object, templates: object) -> None:
    try:
        found = make_class_set(classes, templates, "here")
    except ValueError as error:
        assert str(error).startswith("here: ") and "\n" not in str(error)
        return
    assert len(found.names) == len(found.prompts) == len(set(found.names)) >= 2


NAMES = st.text(st.characters(exclude_characters="\0"), min_size=1, max_size=20).filter(
    lambda name: not any("\ud800" <= c <= "\udfff" for c in name)
)


@MANY
@given(st.lists(st.tuples(NAMES, st.none() | st.text(max_size=5), st.none() | st.sampled_from(["train", "test"]))))
def test_a_manifest_gives_what_was_written(tmp_path: Path, rows: list[tuple[str, str | None, str | None]]) -> None:
    keys = ("path", "label", "split")
    lines = [json.dumps(dict(zip(keys, row, strict=True))) for row in rows]
    (tmp_path / "list.jsonl").write_text("\n".join(lines))
    found = Manifest(str(tmp_path / "list.jsonl"), "csv", "--source").items(ListingReport(lambda *_: None))
    assert [(item.name, item.label, item.split) for item in found] == [(p, label or None, s) for p, label, s in rows]
