"""An index is what anybody who may write to the bucket has written: no name, number or checksum of it is believed."""

import hashlib
import io
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from must.base import storage
from must.data.format import load_index, load_offsets, parse_index
from must.data.reader import ShardCache, open_reader
from must.data.shards.listing import History
from tests.data.shards.test_shard import sharded

NAMES = ["/{home}/.bashrc", "../home/.bashrc", "a/../../home/.bashrc", "train-000000.tar/../../x", "", "x\0.npy"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("foreign")
    sharded(folder, 12, samples_per_shard=5)
    return folder / "out"


def npy(values: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, values)
    return buffer.getvalue()


def edited(folder: Path | str, edit: Callable[[dict[str, Any]], object]) -> bytes:
    content = json.loads(storage.read_bytes(storage.join(folder, "index.json")))
    edit(content)
    return json.dumps(content).encode()


def first(of: str = "shards", /, **values: object) -> Callable[[dict[str, Any]], object]:
    return lambda content: content[of][0].update(values)


EDITS: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    **{f"shard {name!r}": (first(name=name), "is not a valid shard name") for name in NAMES},
    **{f"table {name!r}": (first("tables", name=name), "is not a valid table name") for name in NAMES},
    "sha256 that is a path": (first(sha256="/home/backup/photos"), "is not a sha256"),
    "sha256 with a line break": (first(sha256="a" * 64 + "\n"), "is not a sha256"),
    "a table's sha256": (first("tables", sha256=""), "is not a sha256"),
    "negative bytes": (first(bytes=-1), r"shards\[0\].bytes: must be a non-negative integer"),
    "too many samples": (first(samples=2**70), r"shards\[0\].samples: must be a non-negative integer"),
    "another split's name": (first(name="test-000000.tar"), "is of another split"),
    "a shard twice": (lambda c: c["shards"].append(c["shards"][0]), "is listed twice"),
    "a split as a path": (lambda c: c["splits"].update({"../x": {}}), "not a valid split name"),
    "counts that do not add up": (lambda c: c["splits"]["train"].update(samples=11), "more labels|do not add up"),
    "more chunks than there can be": (lambda c: c.update(chunks=2**40), "chunks must be below"),
    "a source without uri": (lambda c: c.update(source={}), "uri is missing"),
    "no limit of pixels": (lambda c: c["settings"].update(max_pixels=0), "max_pixels must be a positive"),
}


@pytest.mark.parametrize(("edit", "message"), EDITS.values(), ids=EDITS)
def test_what_no_index_of_ours_holds_is_refused_in_one_line(made, edit, message):
    with pytest.raises(ValueError, match=message) as error:
        parse_index(edited(made, edit), "gs://b/index.json")
    text = str(error.value)
    assert text.startswith("gs://b/index.json is damaged") and text.isprintable() and len(text) < 400


FREE = ("test_uri", "files", "labels", "samples_per_shard", "split", "max_bytes", "drop_duplicates")


def test_a_value_of_another_type_is_refused_wherever_it_is(made):
    """Each number, text, list and mapping in turn, but for those of `source` and `settings` that nothing reads."""

    def places(value: Any) -> Iterator[tuple[Any, Any]]:
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            if key not in FREE or value is content:
                yield value, key
                if isinstance(item, dict | list):
                    yield from places(item)

    content = json.loads((made / "index.json").read_bytes())
    count = 0
    for parent, key in list(places(content)):
        value = parent[key]
        for other in (None, 1.5, True, [[]] if not isinstance(value, list) else "text"):
            parent[key] = other
            with pytest.raises(ValueError, match=r"^index\.json (is damaged \(|has version)") as error:
                parse_index(json.dumps(content).encode(), "index.json")
            assert str(error.value).isprintable() and len(str(error.value)) < 400
            count += 1
        parent[key] = value
    assert parse_index(json.dumps(content).encode(), "index.json") and count > 100


@pytest.mark.parametrize(
    "data", [b"", b"\xff", b"[]", b"7", b'"version"', b"[" * 200_000, b'{"version": [[1]]}', b'{"version": 1}']
)
def test_what_is_no_index_at_all_is_refused_in_one_line(data):
    with pytest.raises(ValueError, match=r"^index\.json (is damaged|has version)") as error:
        parse_index(data, "index.json")
    assert str(error.value).isprintable()


def test_a_link_in_the_cache_is_not_followed(made, tmp_path):
    shard, cache = load_index(str(made)).shards[0], ShardCache(tmp_path / "cache", 10**9)
    (tmp_path / "thesis").write_bytes(b"mine")
    (cache.folder / f"{shard.sha256}.part").symlink_to(tmp_path / "thesis")
    with pytest.raises(OSError, match="symbolic links"):
        cache.open(str(made), shard)
    assert (tmp_path / "thesis").read_bytes() == b"mine"


def test_no_more_is_downloaded_than_the_index_says(made, tmp_path, monkeypatch):
    shard, cache, seen = load_index(str(made)).shards[0], ShardCache(tmp_path / "cache", 10**9), []

    def endless(uri: str, file: storage.Writable) -> None:
        for _ in range(1000):
            file.write(bytes(shard.bytes))
        seen.append(next(cache.folder.glob("*.part")).stat().st_size)

    monkeypatch.setattr(storage, "copy", endless)
    with pytest.raises(ValueError, match="has changed"):
        cache.open(str(made), shard)
    assert set(seen) == {shard.bytes}


DAMAGED = r"names-0000\.npy is damaged.*; without it --append"
TABLES = {
    "other bytes": ("names", npy(np.zeros(12, np.uint64)), "0" * 64, DAMAGED),
    "floats": ("names", npy(np.zeros(12, np.float64)), "", DAMAGED),
    "two dimensions": ("names", npy(np.zeros((12, 2), np.uint64)), "", DAMAGED),
    "cut": ("names", npy(np.zeros(12, np.uint64))[:200], "", DAMAGED),
    "a header of brackets": ("names", b"\x93NUMPY\x01\x00" + b"v\x00" + b"(" * 118, "", DAMAGED),
    "zip": ("names", b"PK\x03\x04", "", DAMAGED),
    "another length": ("contents", npy(np.zeros(3, np.uint64)), "", "have another number of images"),
}


@pytest.mark.parametrize("kind", TABLES)
def test_a_table_is_compared_and_read_with_suspicion(made, tmp_path, kind):
    """The index has the checksum of the other bytes, unless another one is given."""
    folder, (table, data, sha256, message) = tmp_path / "out", TABLES[kind]
    shutil.copytree(made, folder)
    name, sha256 = f"{table}-0000.npy", sha256 or hashlib.sha256(data).hexdigest()
    (folder / name).write_bytes(data)
    index = edited(folder, lambda c: [t.update(sha256=sha256) for t in c["tables"] if t["name"] == name])
    (folder / "index.json").write_bytes(index)
    with pytest.raises(ValueError, match=message):
        History(str(folder), load_index(str(folder)))


def with_offsets(made: Path, folder: Path, data: bytes, **values: object) -> str:
    """Shards whose index has the checksum of this table of offsets of the first one, and these values."""
    shutil.copytree(made, folder)
    (folder / "train-000000.npy").write_bytes(data)
    values["offsets_sha256"] = hashlib.sha256(data).hexdigest()
    (folder / "index.json").write_bytes(edited(made, first(**values)))
    return str(folder)


def offsets(*row: int) -> bytes:
    """Of five samples, which are all the same."""
    return npy(np.array([row] * 5, np.int64))


MANY = offsets(0, 1, 0, 1).replace(b"(5, 4)", b"(9999999999, 4)").replace(b"         \n", b"\n")
OTHER_NUMBERS = npy(np.array([[0, 1, 0, 1]] * 5, np.int32))
BRACKETS = b"\x93NUMPY\1\0v\0" + b"(" * 118
OUTSIDE = [(-512, 10, 0, 1), (512, 2**62, 0, 1), (2**62, 10, 0, 1), (0, 1, 2**62, 2**62)]
NO_TABLES = [MANY, OTHER_NUMBERS, offsets(0, 1, 0), offsets(0, 1, 0, 1)[:-1], b"", BRACKETS]


@pytest.mark.parametrize(
    "data, message",
    [(offsets(*row), "points past the end of train-000000") for row in OUTSIDE]
    + [(data, r"no \.npy file of int64 \[5, 4\]") for data in NO_TABLES],
)
def test_offsets_out_of_the_shard_and_what_is_no_table_of_them_are_refused(made, tmp_path, data, message):
    """Without memory for what a header promises."""
    uri = with_offsets(made, tmp_path / "out", data)
    with pytest.raises(ValueError, match=message):
        load_offsets(uri, load_index(uri).shards[0])


@pytest.mark.parametrize("size", [2**52, 1000])
def test_a_shard_of_another_size_than_the_index_says_is_not_read(made, tmp_path, size):
    uri = with_offsets(made, tmp_path / "out", offsets(0, size // 2, 0, size // 2), bytes=size)
    with pytest.raises(ValueError, match=rf"train-000000\.tar has \d+ bytes, its index says {size};"):
        open_reader(uri, "train").image(0)
