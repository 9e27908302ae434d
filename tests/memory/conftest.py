"""The unlabeled digits, and their true classes."""

import numpy as np
import pytest

from must.data.reader import ShardReader
from tests.memory.remembering import unlabeled_digits


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """(shards of 500 unlabeled digits, their classes by file name)."""
    return unlabeled_digits(tmp_path_factory.mktemp("many"), 500)


@pytest.fixture(scope="module")
def truth(digits):
    """[(image, sha256, class)] of the digits' unlabeled split, in another order than there."""
    reader = ShardReader(digits.shards, "train")
    rows = [reader.description(number) for number in range(len(reader))]
    return [(row["source"], row["sha256"], row["label"]) for row in np.random.default_rng(0).permutation(rows)]


@pytest.fixture(scope="module")
def drawn(many):
    """[(image, sha256, class)] of `many`, in a random order."""
    reader = ShardReader(many[0], "train")
    rows = [reader.description(number) for number in np.random.default_rng(0).permutation(500).tolist()]
    return [(row["source"], row["sha256"], many[1][row["source"]]) for row in rows]
