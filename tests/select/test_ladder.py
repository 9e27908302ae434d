"""The ladder as arithmetic: what is kept, what is refused, and that it does not depend on what it must not."""

from dataclasses import replace

import numpy as np
import pytest

from must.method.model.bundle import Description
from must.method.select.alpha import choose_alpha, shares_of
from must.method.select.ladder import MIN_IMAGES, audit, climb, needed_of
from must.method.select.mutual_information import neighbour_information, renamed
from must.method.select.neighbours import look_alikes
from must.method.select.rung_predictions import RungPredictions

K, EACH = 4, 60
TRUTH = np.repeat(np.arange(K), EACH)


@pytest.fixture(scope="module")
def tokens():
    """Four clouds of images, well apart."""
    rng = np.random.default_rng(0)
    return (4 * np.eye(K, 16)[TRUTH] + rng.normal(size=(K * EACH, 16))).astype(np.float32)


def wrong(share, seed=0, shift=1):
    """The true classes, a share of them wrong."""
    rng = np.random.default_rng(seed)
    return np.where(rng.random(len(TRUTH)) < share, (TRUTH + shift) % K, TRUTH)


def said(labels, sure=0.7):
    """Probabilities [N, K] that go with predictions."""
    return np.where(np.arange(K) == labels[:, None], sure, (1 - sure) / (K - 1)).astype(np.float16)


def looks(tokens, *labels):
    return RungPredictions(
        np.arange(len(tokens)), tokens, np.stack([said(each) for each in labels]), np.stack(labels).astype(np.int64)
    )


def climbed(tokens, *labels):
    neighbours, originals = look_alikes(tokens)
    assert len(originals) == len(tokens)
    alphas = np.linspace(0, 1, len(labels))[1:]
    return climb(np.stack([said(each) for each in labels]), np.stack(labels), neighbours, alphas.tolist())


def test_steps_towards_the_truth_are_kept(tokens):
    found = climbed(tokens, wrong(0.35), wrong(0.25), wrong(0.1), TRUTH)
    assert found.alpha == 1 and [rung.outcome for rung in found.rungs] == ["kept"] * 3
    assert not found.kept_zero_shot and found.reason == ""


def test_steps_away_from_the_truth_are_refused(tokens):
    found = climbed(tokens, wrong(0.1), wrong(0.3), TRUTH)
    assert found.kept_zero_shot and len(found.rungs) == 1, "what lies beyond a refusal is not looked at"
    assert found.rungs[0].outcome == "refused" and "speak against" in found.reason


def test_the_way_is_kept_as_far_as_it_is_good(tokens):
    found = climbed(tokens, wrong(0.35), wrong(0.1), wrong(0.5, seed=1))
    assert found.alpha == 0.5 and found.rungs[-1].outcome == "refused"


def test_changes_at_random_are_no_evidence(tokens):
    """A third of the images change from one wrong class to another: nobody's look-alikes care."""
    half = wrong(1.0, shift=1), wrong(1.0, shift=2)
    neighbours, _ = look_alikes(np.random.default_rng(1).normal(size=tokens.shape))
    found = climb(np.stack([said(each) for each in half]), np.stack(half), neighbours, [1.0])
    assert found.kept_zero_shot and abs(found.rungs[0].z) < 2 and found.rungs[0].outcome == "undecided"


def test_a_collapse_onto_a_large_class_is_refused(tokens):
    """Most images are of one class anyway: without the lift their look-alikes would vote for it."""
    chosen = np.concatenate([np.flatnonzero(k == TRUTH)[: None if k == 0 else 12] for k in range(K)])
    before, after = wrong(0.15)[chosen], np.zeros(len(chosen), np.int64)
    neighbours, _ = look_alikes(tokens[chosen])
    z, changed = audit(said(before), before, after, neighbours)
    assert z < -2 and changed > 0.3


def test_where_shares_are_known_feeding_a_large_class_may_be_right(tokens):
    """Of a long tail, whose small classes zero-shot sees too often: the step to the truth feeds the large class."""
    chosen = np.concatenate([np.flatnonzero(k == TRUTH)[: None if k == 0 else 5] for k in range(K)])
    truth, neighbours = TRUTH[chosen], look_alikes(tokens[chosen])[0]
    before = np.where((truth == 0) & (np.arange(len(truth)) % 20 < 11), np.arange(len(truth)) % 3 + 1, truth)
    shares = np.bincount(truth) / len(truth)
    z, _ = audit(said(before, 0.4), before, truth, neighbours)
    knowing, _ = audit(said(before, 0.4), before, truth, neighbours, shares)
    away, _ = audit(said(truth, 0.4), truth, before, neighbours, shares)
    assert z < 2 < 5 < knowing and away < -2


def test_equal_shares_are_none(tokens):
    labels = (wrong(0.35), wrong(0.2), wrong(0.1))
    seen = looks(tokens, *labels)
    told, untold = (choose_alpha(seen, [0.5, 1.0], shares).climb for shares in (np.full(K, 1 / K), None))
    assert [rung.outcome for rung in told.rungs] == [rung.outcome for rung in untold.rungs]
    np.testing.assert_allclose([r.z for r in told.rungs], [r.z for r in untold.rungs], rtol=1e-9)


@pytest.mark.parametrize("told", [None, [], [0.5, 0.5], [0.5, 0.5, 0.0, 0.0], "abcd", [None] * 4, {"a": 1}], ids=str)
def test_what_is_no_share_of_each_class_is_passed_over(told):
    provenance = {} if told is None else {"class_shares": told}
    names = [str(k) for k in range(K)]
    description = Description({}, "tiny", "", names, [], {}, 100.0, provenance)
    assert shares_of(description) is None
    good = replace(description, provenance={"class_shares": [0.1, 0.2, 0.3, 0.4]})
    assert shares_of(good).tolist() == [0.1, 0.2, 0.3, 0.4]


def test_two_classes_that_exchange_names_are_refused(tokens):
    after = TRUTH.copy()
    after[TRUTH == 1], after[TRUTH == 2] = 2, 1
    assert climbed(tokens, wrong(0.2), after).kept_zero_shot


def test_no_change_is_said_so(tokens):
    found = climbed(tokens, wrong(0.2), wrong(0.2), wrong(0.2))
    assert found.kept_zero_shot and found.reason == "no image changes its class beyond it"
    assert all(rung.z == 0 and rung.changed == 0 for rung in found.rungs)
    few = choose_alpha(looks(tokens[:9], wrong(0.2)[:9], wrong(0.2)[:9]))
    assert few.outcome == "same", "a bundle that is zero-shot's is so on any number of images"


def test_look_alikes_that_know_nothing_vouch_for_nobody(tokens):
    """Zero-shot's classes have nothing to do with what the images look like; those of the candidate have."""
    found = climbed(tokens, np.random.default_rng(0).integers(0, K, len(TRUTH)), TRUTH)
    assert found.kept_zero_shot and "know too little" in found.reason and found.undecided


def test_true_labels_are_kept_however_many_classes_there_are():
    """140 classes of twelve images: of 20 look-alikes at most 11 can share a class, so their agreement is low."""
    classes, each = 140, 12
    truth, rng = np.repeat(np.arange(classes), each), np.random.default_rng(0)
    neighbours = look_alikes(rng.normal(size=(classes, 32))[truth] + 0.4 * rng.normal(size=(len(truth), 32)))[0]
    half = np.where(rng.random(len(truth)) < 0.5, rng.integers(0, classes, len(truth)), truth)
    sure = np.where(half == truth, 0.4, 0.2)[:, None] * (np.eye(classes)[half] - 1 / classes) + 1 / classes
    found = climb(np.stack([sure] * 2), np.stack([half, truth]), neighbours, [1.0])
    assert found.alpha == 1 and found.agreement < 0.3


@pytest.mark.parametrize("alpha, kept, needed", [(0.1, 0, 0), (0.03, 0, 0), (0.2, 0, 3), (1, 0, 6), (1, 0.1, 5.4)])
def test_a_short_step_needs_little_and_a_long_one_much(alpha, kept, needed):
    assert needed_of(alpha, kept) == pytest.approx(needed)


def test_a_short_step_is_kept_on_little_evidence_and_the_rest_is_undecided(tokens):
    """A dozen images change for the better: the first tenth is kept on that, and the whole at once would not be."""
    better = wrong(0.35)
    better[np.flatnonzero(better != TRUTH)[:5]] = TRUTH[np.flatnonzero(better != TRUTH)[:5]]
    neighbours, _ = look_alikes(tokens)
    steps = np.stack([said(each) for each in (wrong(0.35), better)]), np.stack([wrong(0.35), better])
    assert climb(*steps, neighbours, [0.1]).alpha == climb(*steps, neighbours, [0.1], length=0.5).alpha == 0.1
    at_once = climb(*steps, neighbours, [0.3]).rungs[0]
    assert at_once.outcome == "kept" and at_once.needed == pytest.approx(1.8) and 1.8 < at_once.z < 3
    found = climb(*steps, neighbours, [1.0])
    assert found.kept_zero_shot and found.rungs[0].outcome == "undecided" and "too weak" in found.reason
    assert climb(*steps, neighbours, [1.0], length=0.1).alpha == 1, "all of a way that is short"
    left = found.undecided
    assert (left.alpha, left.differ) == (1.0, 5 / len(tokens)) and left.answers == 5
    assert left.labels > 1000 and left.images > len(tokens)


def test_more_images_make_no_weak_evidence_strong(tokens):
    """Beyond some thousands of images z grows no more, or any lean, however slight, would pass any bar."""
    neighbours, _ = look_alikes(tokens)
    z = [
        audit(np.tile(said(wrong(0.3)), (n, 1)), np.tile(wrong(0.3), n), np.tile(TRUTH, n), np.tile(neighbours, (n, 1)))
        for n in (1, 4, 20, 40)
    ]
    assert z[1][0] == pytest.approx(2 * z[0][0]) and z[2][0] == pytest.approx(z[3][0])


def test_renamed_classes_need_much_evidence(tokens, monkeypatch):
    half = wrong(0.15)
    free = choose_alpha(looks(tokens, half, wrong(0.1)), [0.1]).climb
    assert free.alpha == 0.1 and 3 < free.rungs[0].z < 4
    monkeypatch.setattr("must.method.select.ladder.RENAMED", -1.0)  # as if more had changed their name
    found = choose_alpha(looks(tokens, half, wrong(0.1)), [0.1]).climb
    assert found.kept_zero_shot and found.rungs[0].needed == 4


def test_predictions_that_are_no_numbers_are_refused(tokens):
    broken = said(TRUTH)
    broken[3] = np.nan
    neighbours, _ = look_alikes(tokens)
    found = climb(np.stack([said(wrong(0.4)), broken]), np.stack([wrong(0.4), TRUTH]), neighbours, [1.0])
    assert found.kept_zero_shot and "not all numbers" in found.reason


@pytest.mark.parametrize("images", [1, 2, 11, MIN_IMAGES - 1])
def test_too_few_images(tokens, images):
    chosen = np.arange(len(tokens))[:: len(tokens) // images][:images]
    choice = choose_alpha(looks(tokens[chosen], wrong(0.4)[chosen], TRUTH[chosen]))
    assert choice.climb.kept_zero_shot and f"{images} different images are too few" in choice.climb.reason


def test_copies_are_no_witnesses(tokens):
    """Every image ten times: the same verdict as once, not one three times as sure."""
    once = choose_alpha(looks(tokens, wrong(0.4), wrong(0.3)), [1.0])
    ten = choose_alpha(looks(np.repeat(tokens, 10, 0), np.repeat(wrong(0.4), 10), np.repeat(wrong(0.3), 10)), [1.0])
    assert ten.copies == 9 * len(tokens) and ten.climb == once.climb


def test_the_order_of_images_does_not_matter(tokens):
    order = np.random.default_rng(3).permutation(len(tokens))
    one = choose_alpha(looks(tokens, wrong(0.4), wrong(0.1)), [1.0]).climb
    other = choose_alpha(looks(tokens[order], wrong(0.4)[order], wrong(0.1)[order]), [1.0]).climb
    assert other.alpha == one.alpha and other.rungs[0].z == pytest.approx(one.rungs[0].z, rel=1e-6)


def test_look_alikes_are_the_nearest(tokens):
    neighbours, _ = look_alikes(tokens, count=5)
    values = tokens - tokens.mean(0)
    values /= np.linalg.norm(values, axis=1, keepdims=True)
    cosine = values @ values.T
    np.fill_diagonal(cosine, -2)
    assert (neighbours == np.argsort(-cosine, axis=1)[:, :5]).all()


def test_neighbour_information_likes_the_truth_and_no_merger(tokens):
    neighbours, _ = look_alikes(tokens)
    score = [neighbour_information(labels, neighbours, K) for labels in (TRUTH, wrong(0.1), TRUTH // 2, 0 * TRUTH)]
    assert score == sorted(score, reverse=True) and score[-1] == 0


def test_renamed_finds_a_cycle_of_names():
    after = np.array([1, 2, 0, 3])[TRUTH]
    assert renamed(TRUTH, after, K) == 0.75 and renamed(TRUTH, TRUTH, K) == 0
    assert renamed(TRUTH, wrong(0.3), K) == 0, "wrong here and there is another matter than renamed"
