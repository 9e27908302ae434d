"""Which labels can be taken unseen: the promise over many draws, its arithmetic, and the rows of the classes."""

from math import comb

import numpy as np
import pytest

from must.method.answers.estimate import accept, describe_classes, error_tail, fewest_answers, find_ranks


def draw(images, answers, rate, seed):
    """(what `accept` finds, the share of wrong labels among the accepted ones). `rate`: of errors, by rank."""
    generator = np.random.default_rng(seed)
    confidence = np.sort(generator.random(images).round(2))  # with ties
    right = generator.random(images) > rate(find_ranks(confidence, confidence))
    asked = np.zeros(images, bool)
    asked[generator.choice(images, answers, replace=False)] = True
    others = confidence[~asked]
    found = accept(0.05, find_ranks(confidence[asked], others), right[asked], others)
    wrong = 0.0 if found.threshold is None else np.mean(~right[~asked][others >= found.threshold])
    assert found.accepted in (None, int((others >= (found.threshold or 0)).sum()))
    return found, wrong


@pytest.mark.parametrize("images, answers", [(2_000, 60), (2_000, 240), (300, 150)])
@pytest.mark.parametrize("rate", [lambda rank: 0.06, lambda rank: 0.3 * (1 - rank), lambda rank: 0.02])
def test_the_promise_is_kept_in_95_of_100_draws(images, answers, rate):
    """Too many errors in 5% of the draws at most; 200 draws leave room for chance."""
    draws = [draw(images, answers, rate, seed) for seed in range(200)]
    assert sum(wrong > 0.05 for _, wrong in draws) <= 0.08 * 200


def test_with_too_few_or_wrong_answers_nothing_is_promised():
    confidence = np.linspace(0, 1, 1_000)
    few, all_right = np.linspace(0, 1, 58), np.ones(58, bool)
    found = accept(0.05, few, all_right, confidence)
    assert found.accepted is None and "yet: at least 59 random answers" in found.text() and fewest_answers(0.05) == 59
    wrong = accept(0.05, np.linspace(0, 1, 300), np.zeros(300, bool), confidence)
    assert wrong.accepted is None and wrong.text().startswith("No labels can be taken unseen: 300 random answers")
    found = accept(0.05, np.linspace(0, 1, 300), np.ones(300, bool), confidence)
    assert found.text() == "1,000 of 1,000 labels can be taken unseen: at most 5 in 100 are wrong, with 95% confidence."
    assert accept(0.05, np.empty(0), np.empty(0, bool), confidence).accepted is None
    assert accept(0.05, np.ones(99), np.ones(99, bool), np.empty(0)).accepted is None, "all images are answered"


def test_of_few_images_the_first_test_needs_more_answers():
    """60 right answers do not show that of 250 other images at most 5% have a wrong label; some more do."""
    ranks = np.linspace(0, 1, 120)
    found = accept(0.05, ranks, ranks > 0.3, np.linspace(0, 1, 500))
    assert error_tail(0, 60, 250, 0.05) > 0.05 and found.accepted >= 350


def test_the_tests_are_exact():
    """12 answers with one error, 30 others: more than 10% of these wrong means at least 4 of them."""
    by_hand = sum(comb(5, k) * comb(37, 12 - k) for k in range(2)) / comb(42, 12)
    assert error_tail(1, 12, 30, 0.1) == pytest.approx(by_hand)
    assert error_tail(0, 59, 10**6, 0.05) == pytest.approx(0.95**59, rel=1e-3)


def test_a_class_is_as_good_as_the_share_of_its_labels_that_is_accepted():
    labels = np.repeat([0, 1, 2], 10)
    accepted = np.concatenate([np.arange(10) < count for count in (8, 2, 1)])
    judged, truth = np.array([1, 1, 1, 0]), np.array([1, 0, -1, 0])
    poor, unsure, good = describe_classes(["a", "b", "c", "d"], labels, accepted, judged, truth)
    assert [row["light"] for row in (poor, unsure, good)] == ["poor", "unsure", "good"]
    assert good == {
        "class": "a", "light": "good", "images": 10, "accepted": 8, "answers": 1, "right": [1.0, 0.2065, 1.0],
        "confused_with": "",
    }  # fmt: skip
    assert unsure["answers"] == 3 and unsure["right"][0] == 0.3333 and unsure["confused_with"] == "a"
    assert poor["right"] is None and not describe_classes(["a"], labels[:10], None, judged, truth)[0]["light"]
