"""What a source becomes is bounded by what it is, and so are its names and labels, whatever they come in."""

import json
import math
import struct
import sys
import tarfile
import zipfile
from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet

from must.data.shards.listing import open_source
from must.data.sources import archives, tables
from must.data.sources.files import LONGEST_NAME, ListingReport
from tests import zoo
from tests.common import printed
from tests.zoo import tar_of, zip_of


def listed(path: Path, labels: str = "csv", max_bytes: float = math.inf) -> tuple[list, list[tuple[str, str]]]:
    source = open_source(str(path), labels, "--source")
    source.prepare(path.parent)
    rejected: list[tuple[str, str]] = []
    problems = ListingReport(lambda name, reason: rejected.append((name, reason)), max_bytes)
    return list(problems.without_long_texts(source.items(problems))), rejected


def test_long_names_and_labels_are_rejected_in_short_lines(tmp_path: Path) -> None:
    names = ["a.png", "b" * 60_000 + ".png", "c" * LONGEST_NAME + ".png", "d" * 4000 + ".png"]
    (tmp_path / "x.tar").write_bytes(tar_of(*((name, b"1234") for name in names)))
    items, rejected = listed(tmp_path / "x.tar")
    assert [item.name[0] for item in items] == ["a", "d"] and all(len(name) < 300 for name, _ in rejected)
    assert [reason for _, reason in rejected] == ["a name of more than 4096 bytes"] * 2
    lines = [{"path": "1.png", "label": "é" * 2049}, {"path": "2.png", "label": "é" * 2048}]
    (tmp_path / "x.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    items, rejected = listed(tmp_path / "x.jsonl")
    assert [item.name for item in items] == ["2.png"] and rejected == [("1.png", "a label of more than 4096 bytes")]


def test_a_table_of_rows_that_are_larger_than_an_image_may_be_is_not_read(tmp_path: Path) -> None:
    """By what the file says of its row groups: too large for its rows, or for the file itself."""
    rows = pyarrow.table({"image": [zoo.encoded(zoo.picture()), bytes(3_000_000)], "label": list("ab")})
    for group in (1, 2):
        parquet.write_table(rows, tmp_path / "x.parquet", row_group_size=group, compression="zstd")
        with pytest.raises(ValueError, match=r"x\.parquet: it may have images of more than 1 MB, unpacked"):
            listed(tmp_path / "x.parquet", max_bytes=1_000_000)
        assert len(listed(tmp_path / "x.parquet", max_bytes=10_000_000)[0]) == 2


def test_a_member_of_a_zip_without_a_name_is_rejected_alone(tmp_path: Path) -> None:
    data = zip_of(("q", b"1"), ("a.png", b"1234"), method=zipfile.ZIP_STORED)
    # The name's length in both headers of the first member: its byte becomes one of what follows.
    local, central = data.index(b"PK\3\4") + 26, data.index(b"PK\1\2") + 28
    data = data[:local] + b"\0\0\1\0" + data[local + 4 : central] + b"\0\0\1\0" + data[central + 4 :]
    (tmp_path / "x.zip").write_bytes(data)
    items, rejected = listed(tmp_path / "x.zip")
    assert [item.name for item in items] == ["a.png"] and rejected == [("", "a member without a name")]


def overlapping(entries: int, content: bytes) -> bytes:
    """A zip whose directory lists one member again and again, each time under another name."""
    data = zip_of(("000000.png", content))
    start = data.index(b"PK\1\2")
    entry, end = data[start : data.index(b"PK\5\6")], data[data.index(b"PK\5\6") :]
    directory = b"".join(entry.replace(b"000000", b"%06d" % number) for number in range(entries))
    tail = end[:8] + struct.pack("<HHII", entries, entries, len(directory), start) + end[20:]
    return data[:start] + directory + tail


def test_labels_and_rows_of_nothing_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file of some kilobytes may have millions of rows without an image, each of which is a rejected item."""
    label = pyarrow.DictionaryArray.from_arrays(pyarrow.array([0] * 3000), pyarrow.array(["x" * LONGEST_NAME]))
    for columns, labels, allowed in (
        ({"path": ["1.png"] * 3000, "label": label}, "csv", 1_000_000),
        ({"image": pyarrow.nulls(20_000, pyarrow.binary())}, "none", 10_000_000),
    ):
        parquet.write_table(pyarrow.table(columns), tmp_path / "x.parquet")
        monkeypatch.setattr(tables, "EXPANDED", allowed)
        with pytest.raises(ValueError, match=r"x\.parquet: its rows are more than 100 times"):
            listed(tmp_path / "x.parquet", labels)


def test_a_line_of_a_manifest_is_named(tmp_path: Path) -> None:
    for name, content, message in (
        ("x.jsonl", b'{"path": "1.png"}\n[' + b"[]," * 400_000 + b"0]\n", "line 2 is longer than 1000000 bytes"),
        ("x.csv", b"path" + b",a" * 600_000 + b"\n1.png\n", "line 1 is longer than 1000000 bytes"),
        ("x.csv", b"path,label\na.png,cat\n" * 3 + b"\xff,x\n", "line 7 cannot be read"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=f"{name}: {message}"):
            listed(tmp_path / name)


def test_members_of_a_zip_that_share_their_bytes(tmp_path: Path) -> None:
    path = tmp_path / "x.zip"
    path.write_bytes(overlapping(2000, zoo.encoded(zoo.picture())))
    items, rejected = listed(path)
    assert len(items) == 1 and len(rejected) == 1999
    assert {reason for _, reason in rejected} == {"shares its bytes in the archive with another member"}


def test_a_zip_that_becomes_more_than_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "EXPANDED", 1_000_000)
    (tmp_path / "x.zip").write_bytes(zip_of(*((f"{number}.bmp", bytes(2_000_000)) for number in range(3))))
    with pytest.raises(ValueError, match=r"x\.zip: .* its members are more than 100 times its size"):
        listed(tmp_path / "x.zip")


def header(kind: bytes, size: int, name: str = "h", extended: bool = False) -> bytes:
    """`extended`: lists of a sparse file's pieces follow."""
    member = tarfile.TarInfo(name)
    member.type, member.size = kind, size
    block = bytearray(member.tobuf(tarfile.GNU_FORMAT))
    block[482], block[148:156] = extended, b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def attributes(content: bytes) -> bytes:
    return header(b"x", len(content)) + content.ljust(-(-len(content) // 512) * 512, b"\0") + header(b"0", 0, "1.png")


SPARSE = header(b"S", 0, extended=True)
HEADERS = {
    "digits": attributes(b"1" * 60_000),
    "digits of a sparse file": attributes(b"22 GNU.sparse.major=0\n" + b"1" * 60_000),
    "digits behind a sparse block": SPARSE + bytes(156) + b"x" + bytes(355) + attributes(b"1" * 60_000),
    "a long one": attributes(b"1000000 path=" + b"y" * 1_000_000),
    "a name of more bytes than there are": header(b"L", 20_000) + bytes(300),
    "a sparse file of 4,000 lists": SPARSE + (bytes(504) + b"\1" + bytes(7)) * 4000 + header(b"0", 0),
    "names for a name": (header(b"L", 2) + b"x".ljust(512, b"\0")) * 1000 + header(b"0", 0),
    "attributes of all": b"".join(
        header(b"g", 60_000) + b"".join(b"20 key%06d=000000\n" % (9_000 * n + k) for k in range(3_000)) + bytes(416)
        + header(b"0", 0, f"{n}.png") for n in range(20)
    ),
    "a name of 2 MB": header(b"L", 2_000_000) + b"y" * 2_000_128 + header(b"0", 0),
}  # fmt: skip


def test_headers_that_tarfile_would_read_for_minutes(tmp_path: Path) -> None:
    """In a process of its own, with a limit on its processor time: a regular expression cannot be interrupted."""
    program = """
import resource, sys, time
from must.data.shards.listing import open_source
from must.data.sources.files import ListingReport
for path in sys.argv[1:]:
    resource.setrlimit(resource.RLIMIT_CPU, (int(time.process_time()) + 6, resource.RLIM_INFINITY))
    try:
        print("read", list(open_source(path, "none", "--source").items(ListingReport(lambda *_: None))))
    except ValueError as error:
        print(error)
"""
    zoo.put(tmp_path, {f"{kind}.tar": data + bytes(1024) for kind, data in HEADERS.items()})
    paths = [str(tmp_path / f"{kind}.tar") for kind in HEADERS]
    for path, line in zip(paths, printed(sys.executable, "-c", program, *paths).splitlines(), strict=True):
        assert line.startswith(f"--source {path}: the archive is damaged")


MEASURE = r"""
import re, sys
from must.data.sources.files import ListingReport
from must.data.shards.listing import open_source
from must.data.sources import tables
import pyarrow.parquet
from pathlib import Path
tables.EXPANDED, tables.AT_ONCE = 20_000_000, 20_000_000  # in place of a gigabyte and of 100 MB
def peak():
    return int(re.search(r"VmHWM:\s*(\d+)", open("/proc/self/status").read())[1]) / 1000
before, source = peak(), open_source(sys.argv[1], "none", "--source")
source.prepare(Path(sys.argv[2]))
try:
    print(sum(item.size for item in source.items(ListingReport(lambda name, reason: None))))
except ValueError as error:
    print(error)
print(peak() - before)
"""


@pytest.mark.parametrize("dictionary", [True, False])
def test_a_table_that_expands_is_refused_in_memory_of_a_few_values(tmp_path: Path, dictionary: bool) -> None:
    """2 kB that hold 32 times the same 4 MB: as one value of a dictionary, or one after the other."""
    table = pyarrow.table({"image": pyarrow.array([bytes(4_000_000)] * 32, pyarrow.large_binary())})
    parquet.write_table(table, tmp_path / "a.parquet", compression="zstd", use_dictionary=dictionary)
    (tmp_path / "work").mkdir()
    command = [sys.executable, "-c", MEASURE, tmp_path / "a.parquet", tmp_path / "work"]
    said, peak = printed(*command).splitlines()
    why = "its rows are more than 100 times as large as itself", "it may have images of more than 20 MB"
    assert f"a.parquet: {why[not dictionary]}" in said
    assert float(peak) < 150
