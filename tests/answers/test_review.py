"""What answers measure, in a random order, with intervals that hold."""

import json
from dataclasses import asdict

import numpy as np
import pytest

from must.answers.accuracy import AccuracyEstimate, compare_paired_answers, share
from must.answers.estimate import describe_classes
from must.answers.review import Picture, Review, draw_order
from must.base.parameters import make_record


def make_review(count, classes=("a", "b", "c")):
    pictures = [Picture(n, f"{n}.png", f"{n:064x}", n % 3, (0, 1, 2)) for n in range(count)]
    return Review(model_sha256="0" * 64, index_sha256="", split="train", classes=list(classes), pictures=pictures)


def test_every_image_is_as_likely_as_any_other_to_be_asked_and_none_is_asked_twice():
    images, asked, seeds = 97, 10, 1500
    labels = np.random.default_rng(1).integers(0, 4, images) ** 2
    counts = np.zeros(images)
    for seed in range(seeds):
        order = draw_order(labels, seed)
        assert len(order) == images == len(np.unique(order))
        counts[order[:asked]] += 1
    share = asked / images
    z = (counts / seeds - share) / np.sqrt(share * (1 - share) / seeds)
    assert np.abs(z).max() < 4.5 and 0.6 < z.std() < 1.3


def test_the_first_pictures_are_spread_over_the_classes():
    labels = np.repeat(np.arange(10), 100)
    fewest = min(len(np.unique(labels[draw_order(labels, seed)[:16]])) for seed in range(50))
    at_random = min(len(np.unique(np.random.default_rng(seed).permutation(labels)[:16])) for seed in range(50))
    assert fewest == 10 > at_random
    assert draw_order(np.zeros(1, int), 0).tolist() == [0]


def test_intervals_hold_and_accuracies_have_no_bias():
    """Zero-shot 60% right and the model 75% right of 1,000 images, whose refined label tells a part of that."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 10, 1000)
    before = rng.random(1000) < np.where(labels < 5, 0.45, 0.75)
    after = rng.random(1000) < np.where(before, 0.9, 0.55)
    truth = after.mean(), after.mean() - before.mean()
    orders = [draw_order(labels, seed) for seed in range(1000)]
    for asked in (20, 50, 200):
        found, held = [], []
        for order in orders:
            ends = share(after[order[:asked]]), compare_paired_answers(before[order[:asked]], after[order[:asked]])
            found.append([one.value for one in ends])
            held.append([one.low <= true <= one.high for one, true in zip(ends, truth, strict=True)])
        error = np.std(found, axis=0) / len(orders) ** 0.5
        assert (np.abs(np.mean(found, axis=0) - truth) < 4 * error).all()
        assert (np.mean(held, axis=0) >= 0.93).all(), np.mean(held, axis=0)


def test_the_interval_of_a_gain_is_that_of_bonett_and_price():
    """Of 10 pictures the second is right on 4 that the first has wrong, and wrong on 1 that it has right."""
    before, after = np.array([0] * 4 + [1] + [1] * 5, bool), np.array([1] * 4 + [0] + [1] * 5, bool)
    assert compare_paired_answers(before, after) == pytest.approx((0.3, 0.25 - 0.408333, 0.25 + 0.408333), abs=1e-4)


def test_no_answers_say_nothing_and_few_say_little():
    nothing = np.zeros(0, bool)
    assert share(nothing)[1:] == (0, 1) and compare_paired_answers(nothing, nothing)[1:] == (-1, 1)
    all_right = np.ones(5, bool)
    assert share(all_right).low < 0.6 and compare_paired_answers(all_right, all_right).low < -0.2
    measured = AccuracyEstimate.from_correct(~all_right, all_right)
    assert make_record(AccuracyEstimate, json.loads(json.dumps(asdict(measured)))) == measured
    assert measured.text().startswith("5 answers: zero-shot 0.0% (0% to 43%), the model 100.0% (57% to 100%); gain")
    better = AccuracyEstimate.from_correct(~all_right, ~all_right, with_answers=all_right)
    assert better.gain.value == 1 and "gain of the model with answers +100.0 points" in better.text()


@pytest.mark.parametrize("old, new", [('"format":', '"format":1'), ('"likely":[0,1,2]', '"likely":null')])
def test_a_review_of_another_format_or_a_damaged_one_is_made_again(tmp_path, old, new):
    review, file = make_review(3), tmp_path / "review.json"
    review.save(str(tmp_path))
    assert Review.load(str(tmp_path)) == review and old in file.read_text()
    file.write_text(file.read_text().replace(old, new))
    assert Review.load(str(tmp_path)) is None and Review.load(str(tmp_path / "none")) is None


def test_a_class_is_as_good_as_the_share_of_its_labels_that_is_accepted():
    labels = np.repeat([0, 1, 2], 10)
    accepted = np.concatenate([np.arange(10) < count for count in (8, 2, 1)])
    judged, truth = np.array([1, 1, 1, 0]), np.array([1, 0, -1, 0])
    rows = describe_classes(["a", "b", "c", "d"], labels, accepted, judged, truth)
    poor, unsure, good = (row for _, row in rows)
    assert [label for label, _ in rows] == [2, 1, 0]
    assert [row["light"] for row in (poor, unsure, good)] == ["poor", "unsure", "good"]
    assert good == {
        "class": "a", "light": "good", "images": 10, "accepted": 8, "answers": 1, "right": [1.0, 0.2065, 1.0],
        "confused_with": "",
    }  # fmt: skip
    assert unsure["answers"] == 3 and unsure["right"][0] == 0.3333 and unsure["confused_with"] == "a"
    assert poor["right"] is None and not describe_classes(["a"], labels[:10], None, judged, truth)[0][1]["light"]
