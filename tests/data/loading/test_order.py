"""Sample order: the same global batches on any number of ranks, each sample once an epoch, exact resume."""

from itertools import chain

import numpy as np
import pytest

from must.data.loader import EpochOrder, GlobalBatches

SIZES = [7, 30, 1, 25, 60, 13, 24]  # 160 samples


def steps(world, **options):
    """Global batches as lists of (epoch, sample), the ranks' parts put together."""
    ranks = [list(GlobalBatches(SIZES, 48, 2, 5, rank, world, window=3, **options)) for rank in range(world)]
    assert len({len(rank) for rank in ranks}) == 1
    return [list(chain(*parts)) for parts in zip(*ranks, strict=True)]


@pytest.mark.parametrize("world", [2, 3, 8])
def test_any_number_of_ranks_sees_the_batches_of_one(world):
    assert steps(world) == steps(1)


def test_each_sample_at_most_once_an_epoch_and_another_order_the_next():
    batches = steps(1)
    assert len(batches) == 2 * (160 // 48)
    first, second = (list(chain(*batches[i : i + 3])) for i in (0, 3))
    assert len({sample for _, sample in first}) == 144
    assert [s for _, s in first] != [s for _, s in second]


@pytest.mark.parametrize("first_step", [0, 1, 3, 5])
def test_going_on_at_a_step_gives_the_rest(first_step):
    assert steps(2, first_step=first_step) == steps(1)[first_step:]


@pytest.mark.parametrize("window", [1, 2, 3, 7, 100])
def test_an_epoch_is_a_permutation_for_any_window(window):
    order = EpochOrder(SIZES, 1, 0, window)
    whole = order.take(0, 160)
    assert sorted(whole) == list(range(160))
    np.testing.assert_array_equal(np.concatenate([order.take(i, i + 16) for i in range(0, 160, 16)]), whole)
    shards = set(order.shards[:window].tolist())
    assert order.window_at(0) == 0
    starts = np.concatenate([[0], np.cumsum(SIZES)])
    assert int(np.searchsorted(starts, whole[0], side="right")) - 1 in shards and len(shards) == min(window, 7)


def test_batches_that_processes_cannot_share_are_refused():
    with pytest.raises(ValueError, match="multiple of the number of processes"):
        GlobalBatches(SIZES, 10, 1, 0, 0, 3)
