"""What a source becomes is bounded by what it is, and so are its names and labels, whatever they come in."""

from __future__ import annotations

import io
import json
import math
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet

from must.data.shards.listing import open_source
from must.data.sources import archives, tables
from must.data.sources.base import LONGEST_NAME, ListingReport
from tests import zoo
from tests.data.tars import tar_of


def listed(path: Path, labels: str = "csv", max_bytes: float = math.inf) -> tuple[list, list[tuple[str, str]]]:
    source = open_source(str(path), labels, "--source")
    source.prepare(path.parent)
    rejected: list[tuple[str, str]] = []
    return list(source.items(ListingReport(lambda name, reason: rejected.append((name, reason)), max_bytes))), rejected


def test_long_names_of_a_tar_are_rejected_in_short_lines(tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    names = ["a.png", "b" * 60_000 + ".png", "c" * LONGEST_NAME + ".png", "d" * 4000 + ".png"]
    path.write_bytes(tar_of(*((name, b"1234") for name in names)))
    items, rejected = listed(path)
    assert [item.name[0] for item in items] == ["a", "d"]
    assert {reason for _, reason in rejected} == {"a name of more than 4096 bytes"} and len(rejected) == 2
    assert all(len(name) < 300 for name, _ in rejected)


def test_long_labels_are_rejected_in_tables_and_manifests(tmp_path: Path) -> None:
    image = zoo.encoded(zoo.picture())
    values = pyarrow.DictionaryArray.from_arrays(pyarrow.array([0, 1] * 50), pyarrow.array(["x" * 100_000, "short"]))
    parquet.write_table(pyarrow.table({"image": [image] * 100, "label": values}), tmp_path / "x.parquet")
    items, rejected = listed(tmp_path / "x.parquet")
    assert {item.label for item in items} == {"short"} and len(items) == len(rejected) == 50
    assert {reason for _, reason in rejected} == {"a label of more than 4096 bytes"}
    lines = [{"path": "1.png", "label": "é" * 2049}, {"path": "p" * 5000}, {"path": "2.png", "label": "é" * 2048}]
    (tmp_path / "x.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    items, rejected = listed(tmp_path / "x.jsonl")
    assert [item.name for item in items] == ["2.png"] and len(rejected) == 2


def test_a_row_that_is_larger_than_an_image_may_be_is_rejected_before_it_is_read(tmp_path: Path) -> None:
    """By what the file says of its row groups: too large for its rows, or for the file itself."""
    image, zeros = zoo.encoded(zoo.picture()), bytes(3_000_000)
    rows = pyarrow.table({"image": [image, zeros, image, image, zeros, image], "label": list("abcdef")})
    with parquet.ParquetWriter(tmp_path / "x.parquet", rows.schema, compression="zstd") as writer:
        for start, count in ((0, 1), (1, 1), (2, 1), (3, 3)):
            writer.write_table(rows.slice(start, count))
    items, rejected = listed(tmp_path / "x.parquet", max_bytes=1_000_000)
    assert [(item.name, item.label) for item in items] == [("x.parquet/0", "a"), ("x.parquet/2", "c")]
    why = "may be more than 1 MB, unpacked"
    assert rejected == [(f"x.parquet/{row}", why) for row in (1, 3, 4, 5)]
    assert len(listed(tmp_path / "x.parquet", max_bytes=10_000_000)[0]) == 6


def test_braces_mean_a_bounded_number_of_files(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="matches over 100000 files"):
        open_source(str(tmp_path / "x-{0..99999999}.tar"), "none", "--source")


def test_a_member_of_a_zip_without_a_name_is_rejected_alone(tmp_path: Path) -> None:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("q", b"1")
        archive.writestr("a.png", b"1234")
    data = file.getvalue()
    # The name's length in both headers of the first member: its byte becomes one of what follows.
    local, central = data.index(b"PK\3\4") + 26, data.index(b"PK\1\2") + 28
    data = data[:local] + b"\0\0\1\0" + data[local + 4 : central] + b"\0\0\1\0" + data[central + 4 :]
    (tmp_path / "x.zip").write_bytes(data)
    items, rejected = listed(tmp_path / "x.zip")
    assert [item.name for item in items] == ["a.png"] and rejected == [("", "a member without a name")]


def test_damage_to_a_csv_is_said_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_bytes(b"path,label\na.png,cat\n" * 3 + b"\xff,x\n")
    with pytest.raises(ValueError, match="line 7 cannot be read"):
        list(listed(tmp_path / "x.csv")[0])


def test_labels_count_among_what_a_table_becomes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    label = pyarrow.DictionaryArray.from_arrays(pyarrow.array([0] * 3000), pyarrow.array(["x" * LONGEST_NAME]))
    parquet.write_table(pyarrow.table({"path": ["1.png"] * 3000, "label": label}), tmp_path / "x.parquet")
    monkeypatch.setattr(tables, "EXPANDED", 1_000_000)
    with pytest.raises(ValueError, match=r"x\.parquet: its rows are more than 100 times"):
        listed(tmp_path / "x.parquet")


def overlapping(entries: int, content: bytes) -> bytes:
    """A zip whose directory lists one member again and again, each time under another name."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("000000.png", content)
    data = file.getvalue()
    start = data.index(b"PK\1\2")
    entry, end = data[start : data.index(b"PK\5\6")], data[data.index(b"PK\5\6") :]
    directory = b"".join(entry.replace(b"000000", b"%06d" % number) for number in range(entries))
    tail = end[:8] + struct.pack("<HHII", entries, entries, len(directory), start) + end[20:]
    return data[:start] + directory + tail


def test_rows_of_nothing_count_and_lines_have_an_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file of some kilobytes may have millions of rows without an image, each of which is a rejected item."""
    parquet.write_table(pyarrow.table({"image": pyarrow.nulls(20_000, pyarrow.binary())}), tmp_path / "x.parquet")
    monkeypatch.setattr(tables, "EXPANDED", 10_000_000)
    with pytest.raises(ValueError, match=r"x\.parquet: its rows are more than 100 times"):
        listed(tmp_path / "x.parquet", "none")
    (tmp_path / "x.jsonl").write_bytes(b'{"path": "1.png"}\n[' + b"[]," * 400_000 + b"0]\n")
    (tmp_path / "x.csv").write_bytes(b"path" + b",a" * 600_000 + b"\n1.png\n")
    for name, line in (("x.jsonl", 2), ("x.csv", 1)):
        with pytest.raises(ValueError, match=rf"{name}: line {line} is longer than 1000000 bytes"):
            listed(tmp_path / name)


def test_members_of_a_zip_that_share_their_bytes(tmp_path: Path) -> None:
    path = tmp_path / "x.zip"
    path.write_bytes(overlapping(2000, zoo.encoded(zoo.picture())))
    items, rejected = listed(path)
    assert len(items) == 1 and len(rejected) == 1999
    assert {reason for _, reason in rejected} == {"shares its bytes in the archive with another member"}


def test_a_zip_that_becomes_more_than_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "EXPANDED", 1_000_000)
    with zipfile.ZipFile(tmp_path / "x.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for number in range(3):
            archive.writestr(f"{number}.bmp", bytes(2_000_000))
    with pytest.raises(ValueError, match=r"x\.zip: .* its members are more than 100 times its size"):
        listed(tmp_path / "x.zip")


def header(kind: bytes, size: int, name: bytes = b"h") -> bytes:
    block = name.ljust(100, b"\0") + b"0000644\0" * 3 + b"%011o\0" % size + b"0" * 11 + b"\0" + b" " * 8 + kind
    block = block.ljust(257, b"\0") + b"ustar\x0000"
    block = block.ljust(512, b"\0")
    return block[:148] + b"%06o\0 " % sum(block) + block[156:]


def attributes(content: bytes) -> bytes:
    return header(b"x", len(content)) + content.ljust(-(-len(content) // 512) * 512, b"\0") + header(b"0", 0, b"1.png")


HEADERS = {
    "digits": attributes(b"1" * 60_000),
    "digits of a sparse file": attributes(b"22 GNU.sparse.major=0\n" + b"1" * 60_000),
    "digits behind a sparse block": header(b"S", 0)[:482] + b"\1" + bytes(29) + bytes(156) + b"x" + bytes(355)
    + attributes(b"1" * 60_000),
    "a long one": attributes(b"1000000 path=" + b"y" * 1_000_000),
    "a sparse file of 4,000 lists": header(b"S", 0)[:482] + b"\1" + bytes(29)
    + (bytes(504) + b"\1" + bytes(7)) * 4000 + header(b"0", 0),
    "names for a name": (header(b"L", 2) + b"x".ljust(512, b"\0")) * 1000 + header(b"0", 0),
    "attributes of all": b"".join(
        header(b"g", 60_000) + b"".join(b"20 key%06d=00000000\n" % (9_000 * n + k) for k in range(3_000)) + bytes(416)
        + header(b"0", 0, b"%d.png" % n) for n in range(20)
    ),
    "a name of 2 MB": header(b"L", 2_000_000) + b"y" * 2_000_128 + header(b"0", 0),
}  # fmt: skip


@pytest.mark.parametrize("kind", HEADERS)
def test_headers_that_tarfile_would_read_for_minutes(tmp_path: Path, kind: str) -> None:
    """In a process of its own, with a limit on its processor time: a regular expression cannot be interrupted."""
    path = tmp_path / "x.tar"
    path.write_bytes(HEADERS[kind] + bytes(1024))
    program = (
        "import resource, sys; from must.data.shards.listing import open_source; "
        "from must.data.sources.base import ListingReport\n"
        "resource.setrlimit(resource.RLIMIT_CPU, (5, 5))\n"
        "try: list(open_source(sys.argv[1], 'none', '--source').items(ListingReport(print)))\n"
        "except ValueError as error: print(error)\n"
    )
    found = subprocess.run([sys.executable, "-c", program, str(path)], capture_output=True, text=True, check=False)
    assert found.returncode == 0 and "x.tar: the archive is damaged" in found.stdout, found
