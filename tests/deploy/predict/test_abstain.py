"""Abstaining: `must predict`, `must.load` and `must serve` say the same, by any threshold."""

import csv
import json
from pathlib import Path

import onnx
import pytest

import must
from must.deploy.predict.session import ABSTENTION, threshold
from tests.deploy.serve.server import running


@pytest.fixture(scope="module")
def calibrated(exported, tmp_path_factory):
    """The exported model with a threshold in it."""
    model = onnx.load(exported[1] / "model.onnx")
    model.metadata_props.add(key=ABSTENTION, value=json.dumps({"threshold": 0.8, "by": "labels"}))
    path = tmp_path_factory.mktemp("calibrated") / "model.onnx"
    onnx.save(model, path)
    return str(path)


def test_single_images(calibrated, digits, tmp_path):
    images = [str(digits.images / "test")]
    plain = must.predict(model=calibrated, images=images, abstain=0).predictions
    unsure = [found.probability < 0.8 for found in plain]
    assert 0 < sum(unsure) < len(unsure) and not any(row.abstained for row in plain)
    names = [None if found.probability < 0.8 else found.top[0][0] for found in plain]
    loaded = must.load(calibrated)
    for found in (must.predict(model=calibrated, images=images, abstain=0.8).predictions, loaded(images)):
        assert [row.abstained for row in found] == unsure and [row.name for row in found] == names

    must.predict(model=calibrated, images=images, top_k=2, output=str(tmp_path / "p.csv"))
    rows = list(csv.DictReader((tmp_path / "p.csv").open()))
    assert [row["abstained"] == "1" for row in rows] == unsure
    assert all((row["class"] == row["class_2"] == "") == (row["abstained"] == "1") for row in rows)
    must.predict(model=calibrated, images=images, top_k=2, output=str(tmp_path / "p.jsonl"))
    lines = [json.loads(line) for line in (tmp_path / "p.jsonl").read_text().splitlines()]
    assert [line["class"] for line in lines] == names
    with running("--model", calibrated, "--top-k", 2) as server:
        for line in lines[:20]:
            served = server.ask("POST", "/classify", Path(line["image"]).read_bytes())[1]
            assert {name: served[name] for name in ("class", "abstained")} == {
                name: line[name] for name in ("class", "abstained")
            }
            assert [row["class"] for row in served["predictions"]] == [row["class"] for row in line["predictions"]]


def test_on_the_terminal(calibrated, digits, capsys):
    from must.api.stages import call

    call("predict", model=calibrated, images=[str(digits.images / "test")])
    lines = capsys.readouterr().out.splitlines()
    assert 0 < sum("none of these: " in line for line in lines) < len(lines)


def test_shards_say_which_threshold_it_was(calibrated, digits, tmp_path):
    must.predict(model=calibrated, shards=digits.shards, split="test", output=str(tmp_path), abstain=-1, workers=1)
    found = json.loads((tmp_path / "predictions.json").read_text())
    assert found["abstain"] == 0.8 and 0 < found["coverage"] < 1


def test_a_model_without_a_threshold_never_abstains(exported, digits):
    found = must.predict(model=str(exported[1]), images=[str(digits.images / "test")], abstain=-1).predictions
    assert found and not any(row.abstained for row in found)


def test_a_damaged_threshold():
    for damaged in ("{", "[]", '{"threshold": "0.5"}', '{"threshold": 2}', '{"threshold": true}', '{"threshold": NaN}'):
        with pytest.raises(ValueError, match="is damaged"):
            threshold(-1, {ABSTENTION: damaged}, "model.onnx")
