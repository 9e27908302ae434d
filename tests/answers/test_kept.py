"""Labels that were accepted stay accepted, until something that they rest on is taken back."""

from dataclasses import replace

import numpy as np
import pytest

from must.answers.population import KeptLabels, find_kept_file, read_kept, write_kept

CLASSES = ["zero", "one"]
PICTURES = np.arange(100, 200, dtype=np.uint64)  # as they are in the folder
KEPT = KeptLabels(
    risk=0.05,
    pictures=100,
    allowed=5,
    contents=PICTURES[40:],
    labels=np.arange(60) % 2,
    confidence=np.linspace(0.5, 1, 60, dtype=np.float32),
    drawn=PICTURES[:30],
    answers=np.arange(30) % 2,
)
RANDOM = dict(zip(KEPT.drawn.tolist(), KEPT.answers.tolist(), strict=True))


def holds(pictures=100, contents=PICTURES, random=RANDOM, others=None, kept=KEPT, overlooked=0):
    return kept.holds(pictures, contents, random | (others or {}), overlooked)


def test_more_answers_change_nothing():
    assert holds()
    assert holds(others={130: 1, 131: 0}), "what was left"
    assert holds(random=RANDOM | {132: 1}), "another one that was drawn"
    assert holds(others={140: 0, 141: 1}), "accepted labels that were right"
    assert holds(pictures=150), "pictures that were added are left"


def test_what_it_rests_on_must_stay():
    assert not holds(random=RANDOM | {105: 0}), "another answer"
    assert not holds(random={one: label for one, label in RANDOM.items() if one != 105}), "taken back"
    assert holds(contents=PICTURES[6:], random={one: label for one, label in RANDOM.items() if one > 105}), "removed"
    assert not holds(pictures=99), "4 of 99 may be wrong, not 5"
    assert not holds(overlooked=1) and holds(overlooked=1, kept=replace(KEPT, allowed=4)), "and one is overlooked"


def test_more_wrong_labels_than_promised_end_it():
    wrong = {int(one): 1 - int(label) for one, label in zip(KEPT.contents[:6], KEPT.labels[:6], strict=True)}
    assert not holds(others=wrong)
    assert holds(others=dict([*wrong.items()][:5]))


@pytest.mark.parametrize("answers", ["review", "review/answers.jsonl"])
def test_it_is_read_as_it_was_written(tmp_path, monkeypatch, answers):
    monkeypatch.chdir(tmp_path)
    assert read_kept(answers, 0.05, CLASSES) is None
    write_kept(answers, KEPT, CLASSES)
    assert [path.name for path in (tmp_path / "review").iterdir()] == ["accepted-0.05.npz"]
    found = read_kept(answers, 0.05, CLASSES)
    assert holds(kept=found) and found.confidence.dtype == np.float32 and (found.labels == KEPT.labels).all()
    assert read_kept(answers, 0.02, CLASSES) is None and read_kept(answers, 0.05, ["zero", "two"]) is None
    assert read_kept(answers, 0.05, [*CLASSES, "two"]) is None, "its pictures may show the new class"
    other = read_kept(answers, 0.05, CLASSES[::-1])
    assert (other.labels == 1 - KEPT.labels).all() and (other.answers == 1 - KEPT.answers).all(), "by name"
    (tmp_path / find_kept_file(answers, 0.05)).write_bytes(b"PK damaged")
    assert read_kept(answers, 0.05, CLASSES) is None


def test_it_is_kept_for_its_risk_alone(tmp_path):
    write_kept(str(tmp_path), replace(KEPT, risk=0.02), CLASSES)
    assert read_kept(str(tmp_path), 0.05, CLASSES) is None and read_kept(str(tmp_path), 0.02, CLASSES).allowed == 5
