"""The check of a model without labels: its numbers by hand, and its only warnings."""

import pytest
import torch

from must.method.memory.check import FEWEST, Predicted, compare_predictions, count_effective


def predicted(labels, confidence=0.9):
    return Predicted(labels, torch.full((len(labels),), confidence))


def test_numbers_by_hand():
    assert count_effective(torch.tensor([4, 4, 0])) == pytest.approx(2)
    assert count_effective(torch.tensor([7])) == pytest.approx(1)
    labels = torch.arange(100) % 5
    found = compare_predictions(predicted(labels, 0.5), predicted(labels.clamp(max=3), 0.75), list("abcde"))
    assert (found.images, found.changed, found.dead_classes) == (100, 0.2, ["e"])
    assert (found.confidence_before, found.confidence_after) == (0.5, 0.75)
    assert found.effective_before == 5 and found.effective_after == pytest.approx(3.79, abs=0.01)
    assert found.warnings == [], "a class that is no longer predicted may be one that the images do not show"


@pytest.mark.parametrize(
    "images, left, confidence, words",
    [
        (100, 2, 0.9, []),  # 2 of 5 classes: above a third
        (100, 1, 0.9, ["effectively 1.0, zero-shot 5.0"]),
        (FEWEST - 1, 1, 0.9, []),
        (100, 5, float("nan"), ["not finite"]),
    ],
)
def test_only_a_collapse_is_a_warning(images, left, confidence, words):
    labels = torch.arange(images) % 5
    found = compare_predictions(predicted(labels), predicted(labels % left, confidence), list("abcde")).warnings
    assert len(found) == len(words) and all(word in text for word, text in zip(words, found, strict=True))
