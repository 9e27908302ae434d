"""Stages that are told which index they work on refuse another one, before they load or write anything."""

import shutil

import pytest

from must.api.run import run
from must.base.program import find_exit_code
from must.data.format import load_index
from must.pods import stages
from must.pods.notes import Facts
from must.pods.training import make_job_values

EARLIER = "e" * 64  # what the index was when the run began


def refused(function, *values, **named):
    with pytest.raises(ValueError) as error:
        function(*values, **named)
    assert find_exit_code(error.value) == 2
    return str(error.value)


@pytest.mark.parametrize("stage", ["train", "evaluate", "export"])
def test_another_index_than_the_one_given_is_refused_and_both_are_named(stage, digits, tmp_path):
    values = {"shards": digits.shards, "output": str(tmp_path / "out"), "index_sha256": EARLIER}
    values |= {"classifier": digits.classifier, "device": "cpu"} if stage == "train" else {"model": digits.adapted}
    line = refused(run, stage, **values)
    assert f"{digits.shards}/index.json" in line and EARLIER in line and load_index(digits.shards).sha256 in line
    assert not (tmp_path / "out").exists()


def test_the_pipelines_stages_pass_on_the_index_they_were_given(digits, tmp_path):
    work = tmp_path / "work"
    shutil.copytree(digits.shards, work / "shards")
    given = {"index_sha256": EARLIER, "classifier": digits.classifier}
    _, values = make_job_values(str(work), **given, preset="digits", settings={}, epochs=1)
    assert EARLIER in refused(run, "train", **values, classifier=digits.classifier, output=str(tmp_path / "m"))
    places = {name: str(tmp_path / name) for name in ("details", "report", "decision", "reasons")}
    places |= {"bundle": digits.adapted, "split": "test", "key": "k", "model_name": "digits"}
    assert EARLIER in refused(stages.evaluate, Facts(), str(work), **given, **places)
