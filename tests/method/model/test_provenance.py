"""What a bundle tells of its training: read and written without loss."""

import numpy as np
import pytest

from must.base.errors import UserError
from must.method.answers.estimate import AccuracyEstimate
from must.method.model.provenance import CheckResult, MemoryFacts, Provenance, RunSummary, Selection

MEASURED = AccuracyEstimate.from_correct(np.array([True, False, False]), np.array([True, True, False]))
NOW = Provenance(
    index_sha256="0" * 64, index_revision=3, config={"epochs": 3, "strong_scale": [0.3, 1.0]}, processes=2,
    summary=RunSummary(30, 1200, 9.5, 126.3, 0.01, None), versions={"must": "1"}, class_shares=[0.25, 0.75],
    selection=Selection(0.5, "2 answers", CheckResult(150, 0.25, 0.5, 0.75, 9.5, 8.0), MEASURED),
    memory=MemoryFacts(150, 2, 0.5),
)  # fmt: skip


def test_it_is_read_as_it_was_written():
    assert Provenance.of_dict(NOW.to_dict()) == NOW
    assert NOW.to_dict()["summary"]["saving_checkpoints"] is None and "git_revision" not in NOW.to_dict()
    assert not Provenance() and Provenance().to_dict() == {} and NOW


@pytest.mark.parametrize(
    "selection", ["x", [1], {"alpha": "much"}, {"alpha": 1.5}, {"alpha": 0.5, "measured": {"a": 1}}]
)
def test_a_selection_that_cannot_be_understood_is_none(selection):
    assert Provenance.of_dict({"selection": selection}).selection is None


@pytest.mark.parametrize(
    "wrong", [[], {"index_revision": "x"}, {"config": [1]}, {"summary": {"steps": "many"}}, {"versions": {"must": [1]}}]
)
def test_another_value_of_another_kind_is_refused(wrong):
    with pytest.raises(UserError):
        Provenance.of_dict(wrong)
