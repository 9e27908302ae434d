"""How well batches are mixed, by the statistic of benchmarks/shuffle.py."""

from pathlib import Path

import numpy as np
import pytest

from benchmarks import shuffle
from must.config import TrainConfig
from must.data.loading.reader import ShardReader
from tests import zoo
from tests.data.shards.test_shard import run

DEFAULT = TrainConfig(shards="s", classifier="c", output="o").shuffle_window


def chi2(labels: np.ndarray, sizes: list[int], window: int) -> float:
    return shuffle.mixing(labels, sizes, 64, window)[0]


def test_what_was_appended_is_mixed_by_the_default_window() -> None:
    random, sizes = np.random.default_rng(0), [100] * 400
    appended = np.concatenate([random.integers(0, 45, 36_000), random.integers(45, 50, 4000)])
    assert chi2(appended, sizes, 1) > 1.4
    assert chi2(appended, sizes, DEFAULT) < 1.2


def test_sharding_mixes_folders_of_classes(tmp_path: Path) -> None:
    """The source lists class after class; even one shard at a time gives batches as if drawn at random."""
    for label in range(10):
        zoo.fill(tmp_path / "in" / f"class {label}", 96, start=96 * label)
    run(tmp_path / "in", tmp_path / "out", labels="folder", samples_per_shard=96)
    reader = ShardReader(str(tmp_path / "out"), "train")
    labels = np.asarray([int(str(reader.description(n)["label"])[-1]) for n in range(len(reader))])
    for window in (1, DEFAULT):
        assert chi2(labels, reader.sizes, window) == pytest.approx(1, abs=0.4)
