"""A parser of foreign bytes each: bytes in, a result or a refusal out. Anything else that is raised is a finding."""

from __future__ import annotations

import io
import json
import tarfile
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pyarrow
from pyarrow import parquet

from must.data.format.index import parse_index
from must.data.image import bounds
from must.data.image.cost import detect_format
from must.data.image.decode import check, decode, identify
from must.data.sources.archives import Archives
from must.data.sources.base import Item, ListingReport, Source, UnreadableError
from must.data.sources.files import Manifest
from must.data.sources.tables import Table, Tables
from must.deploy.serve.protocol import Refused, parse_request
from must.method.model.classifier import load_class_set
from must.method.model.description import load_description
from tests import zoo

REFUSALS = (ValueError, UnreadableError, Refused)
PIXELS = 200_000  # of a fuzzed image: what is slow on large ones is tested, not fuzzed
TEMPORARY = tempfile.TemporaryDirectory(prefix="must-fuzz-")  # goes with the process
FOLDER = Path(TEMPORARY.name)


@dataclass(frozen=True)
class Target:
    parse: Callable[[bytes], object]
    seeds: Callable[[], list[bytes]]
    longest: int = 4096  # bytes of an input


def run(target: Target, data: bytes) -> None:
    """Raises AssertionError: a refusal that is not one line of text; or whatever the parser should not have raised."""
    try:
        target.parse(data)
    except REFUSALS as error:
        text = str(error)
        assert text and "\n" not in text and len(text) < 2000, f"no line to show to anybody: {text[:3000]!r}"


def file_of(data: bytes, name: str) -> str:
    path = FOLDER / name
    path.write_bytes(data)
    return str(path)


# -- index ----------------------------------------------------------------------------------------------------------
def index(data: bytes) -> None:
    found = parse_index(data, "index.json")
    assert parse_index(found.to_json(), "index.json") == found
    for shard in found.shards:
        assert Path("/srv/x", shard.name).parent == Path("/srv/x") and len(shard.sha256) == 64
        assert Path("/srv/x", shard.offsets_name).parent == Path("/srv/x")
    assert all(Path("/srv/x", table["name"]).parent == Path("/srv/x") for table in found.tables)
    assert found.max_pixels > 0 and sum(shard.samples for shard in found.shards) >= 0


def indexes() -> list[bytes]:
    shard = {
        "name": "train-000000.tar", "split": "train", "samples": 2, "bytes": 4096, "sha256": "a" * 64,
        "offsets_sha256": "b" * 64, "labelled": 1,
    }  # fmt: skip
    content = {
        "revision": 0, "created_by": "must 1", "source": {"uri": "in", "test_uri": "", "fingerprint": "f", "files": 2},
        "settings": {"resize": 0, "max_pixels": 89478485}, "shards": [shard],
        "splits": {"train": {"samples": 2, "labelled": 1}}, "labels": ["cat"], "rejected": 1,
        "reasons": {"empty file": 1}, "duplicates": 0, "dropped": 0, "skipped": {".txt": 1},
        "tables": [{"name": "names-0000.npy", "sha256": "c" * 64}], "chunks": 1, "version": 1,
    }  # fmt: skip
    return [json.dumps(content).encode(), b'{"version": 1}', b"[]"]


# -- sources -----------------------------------------------------------------------------------------------------------
def listing(source: Source, limit: int = 10_000) -> None:
    """What sharding does with a source: lists it, writes the items down, reads them."""
    for item in source.items(ListingReport(lambda name, reason: json.dumps([name, reason]).encode())):
        json.dumps(item).encode()
        item.name.encode("utf-8", "surrogateescape")
        try:
            assert len(source.read(item, limit)) <= max(limit, item.size)
        except (UnreadableError, OSError):
            continue


def manifest(kind: str) -> Callable[[bytes], None]:
    class Listed(Manifest):
        def read(self, item: object, limit: int) -> bytes:
            return b""  # a fuzzer is not to open the files that it names

    return lambda data: listing(Listed(file_of(data, f"list.{kind}"), "csv", "--source"))


def archive(kind: str) -> Callable[[bytes], None]:
    def parse(data: bytes) -> None:
        path = file_of(data, f"images.{kind}")
        source = Archives(path, [path], "csv", "--source")
        source.prepare(FOLDER)
        listing(source)

    return parse


def table_of_images(kind: str) -> Callable[[bytes], None]:
    class Listed(Tables):
        def read(self, item: Item, limit: int) -> bytes:
            return (
                super().read(item, limit) if item.locator[1] is not None else b""
            )  # it opens no file that a row names

    def parse(data: bytes) -> None:
        path = file_of(data, f"images.{kind}")
        source = Listed(path, [Table(path, "images")], "csv", "--source", ("", ""))
        source.prepare(FOLDER)
        listing(source)

    return parse


def tables(kind: str) -> list[bytes]:
    content = pyarrow.table({"image": [b"one", None, b"three"], "label": ["a", "b", None]})
    sink = pyarrow.BufferOutputStream()
    if kind == "parquet":
        parquet.write_table(content, sink)
    else:
        with pyarrow.ipc.new_stream(sink, content.schema) as writer:
            writer.write_table(content)
    return [sink.getvalue().to_pybytes()]


def tars() -> list[bytes]:
    found = []
    for form in (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT):
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w", format=form) as tar:
            for name in (
                ("1.png", "1.json", "1.cls", "x" * 101 + ".png") if form != tarfile.USTAR_FORMAT else ("1.png",)
            ):
                member = tarfile.TarInfo(name)
                member.size = 9
                tar.addfile(member, io.BytesIO(b'{"a": 12}'))
        found.append(buffer.getvalue()[:8192])
    return found


def zips() -> list[bytes]:
    found = []
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", method) as archive:
            archive.writestr("a/1.png", b"12345678" * 9)
            archive.writestr("ü.jpg", b"")
        found.append(buffer.getvalue())
    return found


# -- images ------------------------------------------------------------------------------------------------------------
def image(data: bytes) -> None:
    """Checking refuses whatever decoding refuses, but for a JPEG, and the other way round. Other formats than these
    three are decoded by a process that is ended by its limits."""
    if not detect_format(data):
        return
    bounds.memory_limited = True  # what it takes shows in this process
    header = identify(data, PIXELS)
    picture = decode(data, PIXELS)
    assert picture.mode == "RGB" and max(picture.size) <= 200 * min(picture.size)
    check(header)


def images() -> list[bytes]:
    small = zoo.picture(0, 16, 12)
    found = [zoo.encoded(small, kind) for kind in ("JPEG", "PNG", "WEBP")]
    found += [zoo.encoded(small, "JPEG", progressive=True), zoo.turned(6)]
    found += [zoo.encoded(small.convert(mode), "PNG") for mode in ("P", "LA", "RGBA", "1")]
    return [data for data in found if len(data) < 4096]


# -- classes, bundles --------------------------------------------------------------------------------------------------
def classes(data: bytes) -> None:
    found = load_class_set(file_of(data, "classes.yaml"))
    assert len(found.names) == len(set(found.names)) == len(found.prompts) >= 2
    json.dumps([found.names, found.prompts]).encode()
    "".join(found.names).encode()
    assert not found.shares or (
        len(found.shares) == len(found.names) and 0 < min(found.shares) <= max(found.shares) <= 1
    )


def bundle(data: bytes) -> None:
    file_of(data, "model.json")
    description = load_description(str(FOLDER))
    assert all(isinstance(name, str) for name in description.classes)


def bundles() -> list[bytes]:
    values = {
        "architecture": {"embed_dim": 8}, "backbone": "tiny", "pretrained": "", "classes": ["a", "b"],
        "templates": ["a {}"], "preprocess": {"size": 32}, "logit_factor": 100.0, "provenance": {}, "must_version": "1",
        "format": 1, "weights_sha256": "0" * 64,
    }  # fmt: skip
    return [json.dumps(values).encode()]


# -- the server --------------------------------------------------------------------------------------------------------
def request(data: bytes) -> None:
    assert 1 <= len(parse_request(data, 64, 32, True).images) <= 64


def requests() -> list[bytes]:
    tensor = {"name": "image", "datatype": "BYTES", "shape": [1], "data": ["AAAA"]}
    pixels = {**tensor, "datatype": "UINT8", "shape": [1, 32, 32, 3], "data": [7] * 3072}
    bodies = [json.dumps({"inputs": [one]}, separators=(",", ":")).encode() for one in (tensor, pixels)]
    return [bodies[0], bodies[1][:4000]]


TARGETS = {
    "index": Target(index, indexes),
    "jsonl": Target(manifest("jsonl"), lambda: [b'{"path": "a.png", "label": "cat", "split": "x"}\n{"path": "b"}\n']),
    "csv": Target(manifest("csv"), lambda: [b'path,label,split\na.png,cat,test\n"b,\n",,\n']),
    "tar": Target(archive("tar"), tars, 8192),
    "zip": Target(archive("zip"), zips),
    "parquet": Target(table_of_images("parquet"), lambda: tables("parquet")),
    "arrow": Target(table_of_images("arrow"), lambda: tables("arrow")),
    "image": Target(image, images),
    "request": Target(request, requests),
    "classes": Target(
        classes,
        lambda: [
            b"classes: [cat, {name: dog, prompts: [a dog]}]\ntemplates: ['a {}']\n",
            b"classes: [{name: cat, share: 1}, {name: dog, share: 3e-1}]\n",
        ],
    ),
    "bundle": Target(bundle, bundles),
}
