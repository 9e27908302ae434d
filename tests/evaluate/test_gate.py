"""The gates: decisions on metrics whose answer is known, and that the label-free one sees no labels."""

import copy

import numpy as np
import pytest
import torch

from must.evaluate.evaluate import measure
from must.evaluate.gate import label_free_gate, labelled_gate
from must.evaluate.scores import Collector, Samples

CLASSES = list("abcdefghij")


def metrics_of(after, labelled=True, images=500, seed=0):
    """`after`: function of (logits of the baseline, labels, generator) -> logits of the adapted model."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, 10, images)
    logits = generator.normal(size=(images, 10))
    logits[np.arange(images), labels] += 2
    scores = []
    shown = labels if labelled else np.full(images, -1)
    for values in (after(logits.copy(), labels, generator), logits):
        collector = Collector(10)
        collector.add(torch.from_numpy(values).float(), shown)
        scores.append(collector.result())
    samples = Samples(np.arange(images), shown, np.full(images, "file", dtype=object))
    return measure(samples, *scores, CLASSES)


def better(logits, labels, _):
    logits[np.arange(len(labels)), labels] += 2
    return 2 * logits


def collapsed(logits, labels, _):
    logits[:, 3] += 20
    return logits


def two_vanished(logits, labels, _):
    logits[:, [1, 2]] -= 20
    return 2 * logits


def shuffled(logits, labels, _):
    return 2 * np.roll(logits, 1, axis=1)


def noisy(logits, labels, generator):
    return 0.3 * logits + generator.normal(size=logits.shape) * 0.2


@pytest.mark.parametrize("labelled", [True, False])
@pytest.mark.parametrize(
    ("change", "passes", "reason"),
    [
        (better, True, ""),
        (collapsed, False, "effective classes"),
        (two_vanished, False, "vanished classes (b, c)"),
        (shuffled, False, "same class as zero-shot"),
        (noisy, False, "mutual information"),
    ],
)
def test_label_free_gate(change, passes, reason, labelled):
    decision = label_free_gate(metrics_of(change, labelled))
    assert decision.passed == passes and decision.gate == "label-free"
    stops = [text for text in decision.reasons if text.startswith("STOP")]
    assert any(reason in text for text in stops) if reason else not stops
    assert len(decision.reasons) == 5, "every rule is listed, passed or not"


def test_the_label_free_gate_reads_no_labels():
    """Whatever the labelled part of the metrics says, the decision is the same; it works without that part."""
    whole = metrics_of(better)
    without = {"label_free": whole["label_free"], "classes": whole["classes"]}
    assert label_free_gate(without) == label_free_gate(whole)
    assert metrics_of(better, labelled=False)["label_free"] == whole["label_free"]


def test_labelled_gate_needs_the_interval_above_the_gain():
    good, worse = metrics_of(better), metrics_of(noisy)
    assert labelled_gate(good).passed
    low = good["intervals"]["top1"][0]
    assert labelled_gate(good, min_gain=low - 0.001).passed
    assert not labelled_gate(good, min_gain=low).passed
    assert not labelled_gate(worse).passed
    same = metrics_of(lambda logits, labels, _: logits)
    assert not labelled_gate(same).passed, "no change is no gain"


def test_labelled_gate_makes_no_decision_on_few_images():
    few = metrics_of(better, images=60)
    decision = labelled_gate(few)
    assert not decision.passed and decision.reasons[0].startswith("STOP  labelled images 60")
    assert labelled_gate(few, min_images=50).passed


def test_wrong_questions():
    unlabelled, alone = metrics_of(better, labelled=False), copy.deepcopy(metrics_of(better))
    alone["baseline"] = alone["label_free"]["compared"] = None
    for call, text in (
        (lambda: labelled_gate(unlabelled), "has none"),
        (lambda: labelled_gate(alone), "needs a baseline"),
        (lambda: label_free_gate(alone), "give `must evaluate` a --baseline"),
        (lambda: labelled_gate(metrics_of(better), key="nll"), "take top1, top5 or mean_per_class"),
    ):
        with pytest.raises(ValueError, match=text):
            call()
