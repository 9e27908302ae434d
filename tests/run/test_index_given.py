"""Stages that are told which index they work on refuse another one, before they load or write anything."""

import json
import shutil
from pathlib import Path

import pytest

from must.cli import run
from must.format.index import load_index
from must.run import decision, evaluation
from must.run.training import job_values
from tests.evaluate.digits import digits as make_digits

EARLIER = "e" * 64  # what the index was when the run began


@pytest.fixture(scope="module")
def digits():
    return make_digits()


def refused(capsys, function, *values, **named):
    with pytest.raises(SystemExit) as exit_:
        function(*values, **named)
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("must ")]
    assert exit_.value.code == 2
    return line


@pytest.mark.parametrize("stage", ["train", "evaluate", "export"])
def test_another_index_than_the_one_given_is_refused_and_both_are_named(stage, digits, tmp_path, capsys):
    values = {"shards": digits.shards, "output": str(tmp_path / "out"), "index_sha256": EARLIER}
    values |= {"classifier": digits.classifier, "device": "cpu"} if stage == "train" else {"model": digits.adapted}
    line = refused(capsys, run, stage, **values)
    assert f"{digits.shards}/index.json" in line and EARLIER in line and load_index(digits.shards).sha256 in line
    assert not (tmp_path / "out").exists()


def test_the_pipelines_stages_pass_on_the_index_they_were_given(digits, tmp_path, capsys):
    work = tmp_path / "work"
    shutil.copytree(digits.shards, work / "shards")
    values = job_values(str(work), EARLIER, digits.classifier, "", "digits", {}, epochs=1)
    assert EARLIER in refused(capsys, run, "train", **values, classifier=digits.classifier, output=str(tmp_path / "m"))
    places = [str(tmp_path / name) for name in ("details", "report.html")]
    line = refused(capsys, evaluation.evaluate, str(work), EARLIER, digits.adapted, digits.classifier, "test", *places)
    assert EARLIER in line


def test_the_gate_compares_with_the_champion_on_the_images_that_were_evaluated(digits, tmp_path, capsys):
    work, details = tmp_path / "work", tmp_path / "details"
    shutil.copytree(digits.shards, work / "shards")
    details.mkdir()
    (details / "metrics.json").write_text(json.dumps({"data": {"index_sha256": EARLIER}}))
    places = [str(tmp_path / name) for name in ("decision.json", "page.md")]
    line = refused(
        capsys, decision.decide, str(work), digits.adapted, str(details), str(tmp_path / "registry"), "digits", "key",
        "r0000-0123456789ab", digits.zero_shot, "labelled", {}, "test", *places,
    )  # fmt: skip
    assert EARLIER in line and not Path(places[0]).exists()
