"""What the index promises, and that `verify` finds whatever breaks a promise."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from must.data.format import load_index, verify
from must.data.shards.build import show_index
from tests import zoo
from tests.data.shards.test_shard import run


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


def swap(folder: Path) -> None:
    first, second = folder / "train-000000.tar", folder / "train-000001.tar"
    first.rename(folder / "first.tar")
    second.rename(first)
    (folder / "first.tar").rename(second)


BREAKAGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "a flipped bit": (lambda path: flip(path / "train-000001.tar", 3000), "train-000001.tar: its bytes have changed"),
    "a cut shard": (lambda path: os.truncate(path / "train-000002.tar", 9), "train-000002.tar: 9 bytes instead of"),
    "a lost shard": (lambda folder: (folder / "train-000000.tar").unlink(), "train-000000.tar: missing"),
    "lost offsets": (lambda folder: (folder / "train-000000.npy").unlink(), "train-000000.npy is missing"),
    "damaged offsets": (lambda folder: flip(folder / "train-000000.npy", -1), "train-000000.npy is damaged"),
    "shards swapped": (swap, "2 of 3 shards are broken"),
}


@pytest.mark.parametrize(("spoil", "message"), BREAKAGES.values(), ids=BREAKAGES)
def test_verify_names_what_is_broken(shards: Path, spoil: Callable[[Path], None], message: str) -> None:
    spoil(shards)
    with pytest.raises(ValueError, match=rf"\A.*{message}.*\Z"):
        verify(str(shards))


def test_unknown_splits_are_refused_with_the_known_ones(shards: Path) -> None:
    with pytest.raises(ValueError, match=r"no split 'tset'; there are: train \(12 images\)"):
        load_index(str(shards)).list_shards("tset")


def test_an_index_that_is_missing_or_newer_is_one_line(shards: Path) -> None:
    (shards / "index.json").write_bytes(b'{"version": 99}')
    with pytest.raises(ValueError, match=r"^.*has version '99', this program reads 1.*$"):
        load_index(str(shards))
    (shards / "index.json").unlink()
    with pytest.raises(ValueError, match=r"^.*holds no index.json; make it with: must shard.*$"):
        load_index(str(shards))
