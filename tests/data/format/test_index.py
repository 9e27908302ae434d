"""What the index promises, and that `verify` finds whatever breaks a promise."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from must.data.format.index import load_index
from must.data.format.samples import load_offsets, verify
from must.data.shards.build import show_index
from tests import zoo
from tests.data.shards.test_shard import run
from tests.data.tars import tar_of


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    zoo.fill(tmp_path / "in", 12, labels=("a", "b"))
    run(tmp_path / "in", tmp_path / "out", labels="folder", samples_per_shard=5)
    return tmp_path / "out"


def test_whole_shards_pass_and_are_shown(shards: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert verify(str(shards)).splits == {"train": {"samples": 12, "labelled": 12}}
    index = show_index(str(shards))
    printed = capsys.readouterr().out
    assert "3 shards, 12 images, all whole" in printed and index.sha256 in printed


def flip(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-700])


def swap(folder: Path) -> None:
    first, second = folder / "train-000000.tar", folder / "train-000001.tar"
    data = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(data)


BREAKAGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "a flipped bit": (
        lambda folder: flip(folder / "train-000001.tar", 3000),
        r"train-000001.tar: its bytes have changed",
    ),
    "a cut shard": (lambda folder: truncate(folder / "train-000002.tar"), r"train-000002.tar: \d+ bytes instead of"),
    "a lost shard": (lambda folder: (folder / "train-000000.tar").unlink(), "train-000000.tar: missing"),
    "lost offsets": (lambda folder: (folder / "train-000000.npy").unlink(), "train-000000.npy is missing"),
    "damaged offsets": (lambda folder: flip(folder / "train-000000.npy", -1), "train-000000.npy is damaged"),
    "shards swapped": (swap, "2 of 3 shards are broken"),
    "lost names": (lambda folder: (folder / "names-0000.npy").unlink(), "names-0000.npy"),
    "damaged contents": (lambda folder: flip(folder / "contents-0000.npy", -1), "contents-0000.npy"),
}


@pytest.mark.parametrize("breakage", BREAKAGES)
def test_verify_names_what_is_broken(shards: Path, breakage: str) -> None:
    spoil, message = BREAKAGES[breakage]
    spoil(shards)
    with pytest.raises(ValueError, match=message) as error:
        verify(str(shards))
    assert "\n" not in str(error.value)


def header_of(size: int) -> bytes:
    """A tar whose first header, an extended one, says that it has so many bytes, more than octal digits can."""
    header = bytearray(tarfile.TarInfo("x").tobuf(tarfile.GNU_FORMAT))
    header[156:157], header[124:136] = b"x", b"\x80" + size.to_bytes(11, "big")
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header) + bytes(10240)


def sample_of(text: bytes) -> bytes:
    return tar_of(("a.png", b"image"), ("a.json", text))


TARS = {
    "a list for a json": (sample_of(b"[]"), 2),
    "deep json": (sample_of(b"[" * 200_000), 200_000),
    "a header of 1 PB": (header_of(2**50), 0),
    "a header of 1 ZB": (header_of(2**70), 0),
}


@pytest.mark.parametrize("name", TARS)
def test_a_tar_that_an_index_has_the_sha256_of_may_be_anything(shards: Path, name: str) -> None:
    data, length = TARS[name]
    offsets = io.BytesIO()
    np.save(offsets, np.array([[512, 5, 1536, length]], np.int64))
    content = json.loads((shards / "index.json").read_text())
    content["shards"] = content["shards"][:1]
    content["shards"][0] |= {
        "samples": 1, "labelled": 0, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest(),
        "offsets_sha256": hashlib.sha256(offsets.getvalue()).hexdigest(),
    }  # fmt: skip
    content["splits"] = {"train": {"samples": 1, "labelled": 0}}
    (shards / "index.json").write_text(json.dumps(content))
    (shards / "train-000000.tar").write_bytes(data)
    (shards / "train-000000.npy").write_bytes(offsets.getvalue())
    with pytest.raises(ValueError, match="no sample at byte 512") as error:
        verify(str(shards))
    assert "\n" not in str(error.value)


def test_unknown_splits_are_refused_with_the_known_ones(shards: Path) -> None:
    with pytest.raises(ValueError, match=r"no split 'tset'; there are: train \(12 images\)"):
        load_index(str(shards)).shards_of("tset")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "holds no index.json; make it with: must shard"),
        (b'{"version": 99}', "has version '99', this program reads 1"),
    ],
)
def test_an_index_that_is_missing_or_newer_is_one_line(shards: Path, content: bytes | None, message: str) -> None:
    if content is None:
        (shards / "index.json").unlink()
    else:
        (shards / "index.json").write_bytes(content)
    with pytest.raises(ValueError, match=message) as error:
        load_index(str(shards))
    assert "\n" not in str(error.value)


def test_offsets_of_another_shape_are_refused(shards: Path) -> None:
    from dataclasses import replace

    shard = load_index(str(shards)).shards[0]
    with pytest.raises(ValueError, match=r"int64 \[4, 4\] expected"):
        load_offsets(str(shards), replace(shard, samples=4))
    assert isinstance(load_offsets(str(shards), shard), np.ndarray)
