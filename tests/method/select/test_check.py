"""The check of a model without labels: its numbers by hand, and which warnings it gives."""

import dataclasses

import pytest
import torch
from must.method.select.check import FEWEST, Predicted, agreement, check_of, selection_text, warnings_of

from must.method.model.provenance import CheckResult, Selection

GOOD = CheckResult(
    images=2000, agreement_before=0.5, agreement_after=0.6, warnings=[], error=0.01, confidence_before=0.8,
    confidence_after=0.7, changed=0.2, dead_classes=[],
)  # fmt: skip


def test_the_share_of_neighbours_with_the_same_class():
    labels = torch.tensor([0, 0, 1])
    assert agreement(labels, torch.tensor([[1, 2], [0, 2], [0, 1]])).tolist() == [0.5, 0.5, 0.0]
    assert agreement(labels, torch.zeros(3, 0, dtype=torch.int64)).tolist() == [0, 0, 0]


def groups(images=100, classes=5):
    """(neighbours, labels): each image's ten neighbours are of its own class."""
    labels = torch.arange(images) % classes
    return (torch.arange(images)[:, None] + classes * torch.arange(1, 11)) % images, labels


def predicted(labels, confidence=0.9):
    return Predicted(labels, torch.full((len(labels),), confidence))


def test_numbers_by_hand():
    """Before, the first half of the images has the next class's name; after, all have their own."""
    neighbours, labels = groups()
    shuffled = torch.where(torch.arange(100) >= 50, labels, (labels + 1) % 5)
    found = check_of(neighbours, predicted(shuffled, 0.5), predicted(labels, 0.75), list("abcde"))
    assert (found.images, found.changed, found.dead_classes) == (100, 0.5, [])
    assert (found.confidence_before, found.confidence_after) == (0.5, 0.75)
    assert found.agreement_after == 1 and 0.4 < found.agreement_before < 0.8
    assert 0 < found.error < 0.05 and found.warnings == []
    assert "50.0% change class" in selection_text(Selection(check=found))
    worse = check_of(neighbours, predicted(labels), predicted(shuffled), list("abcde"))
    assert len(worse.warnings) == 1 and "agree on a class less often than before" in worse.warnings[0]


def test_a_class_that_is_no_longer_predicted_is_named():
    neighbours, labels = groups()
    found = check_of(neighbours, predicted(labels), predicted(labels.clamp(max=3)), list("abcde"))
    assert found.dead_classes == ["e"]
    assert "1 classes are no longer predicted (e)" in found.warnings


@pytest.mark.parametrize(
    "changes, words",
    [
        ({}, []),
        ({"agreement_after": 0.481}, []),  # by less than two standard errors, which may be chance
        ({"agreement_after": 0.479}, ["agree on a class less often"]),
        ({"confidence_after": 0.48}, []),  # 0.6 of the confidence before
        ({"confidence_after": 0.47}, ["the mean confidence fell from 0.80 to 0.47"]),
        ({"dead_classes": ["x"]}, ["no longer predicted (x)"]),
        ({"agreement_after": 0.1, "confidence_after": 0.1, "dead_classes": list("abcdefg")}, ["often", "fell", "..."]),
        ({"images": FEWEST - 1, "agreement_after": 0.0, "confidence_after": 0.0}, []),
    ],
)
def test_warnings_fire_where_they_should_and_nowhere_else(changes, words):
    found = warnings_of(dataclasses.replace(GOOD, **changes))
    assert len(found) == len(words) and all(word in text for word, text in zip(words, found, strict=True))
