"""WORK, the folder of one adaptation, in place of single paths."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from must.api import stages
from must.base.errors import UserError

configure: Callable[..., Any] = stages.configure  # each stage has parameters of its own


def made(folder, *places):
    """Empty files; a place that ends in .json or the like is one, else a bundle's folder."""
    for place in places:
        file = folder / place if "." in Path(place).name else folder / place / "model.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text('12345678{"__metadata__":{"must":"{}"}}' if file.suffix == ".safetensors" else "{}")
    return str(folder)


def test_work_is_all_that_a_command_has_to_be_told(tmp_path):
    work = made(
        tmp_path, "model", "classifier.safetensors", "shards/index.json", "labels/refined.json", "report/metrics.json",
        "onnx/model.onnx", "before-1/model/model.json", "photos/cat.jpg",
    )  # fmt: skip
    found = configure("evaluate", {"model": work})
    assert (found.model, found.baseline) == (f"{work}/model", f"{work}/classifier.safetensors")
    assert (found.shards, found.refined, found.output) == (f"{work}/shards", f"{work}/labels", f"{work}/report")
    assert configure("evaluate", {"model": work, "baseline": "", "output": "o"}).baseline == ""
    found = configure("export", {"model": f"{work}/", "to": "transformers"})
    assert (found.metrics, found.output) == (f"{work}/report/metrics.json", f"{work}/transformers")
    assert configure("serve", {"model": work}).model == f"{work}/onnx"
    assert configure("gate", {"model": work}).output == f"{work}/decision.json"
    (tmp_path / "config.yaml").write_text(f"model: {work}\n")
    assert configure("select", {}, str(tmp_path / "config.yaml")).answers == ""
    made(tmp_path, "review/answers.jsonl")
    assert configure("select", {"model": work}).answers == configure("review", {"model": work}).output


def test_of_two_models_the_one_that_is_meant_has_to_be_named(tmp_path):
    work = made(tmp_path, "model", "selected", "classifier.safetensors", "shards/index.json", "report/metrics.json")
    for stage in ("evaluate", "export", "gate", "review"):
        with pytest.raises(UserError, match=rf"more than one .*: {work}/model, {work}/selected; name one with --model"):
            configure(stage, {"model": work})
    again = configure("select", {"model": work})  # which made the other one
    assert (again.model, again.output) == (f"{work}/model", f"{work}/selected")
    found = configure("evaluate", {"model": f"{work}/selected"})
    assert (found.shards, found.baseline, found.output) == (f"{work}/shards", "", f"{work}/selected-report")
    assert configure("gate", {"model": f"{work}/model"}).metrics == f"{work}/report/metrics.json"
    message = "no report of `must evaluate` is beside it; make it, or name it with --metrics"
    with pytest.raises(UserError, match=message):
        configure("gate", {"model": f"{work}/selected"})


def test_the_onnx_file_that_is_served_is_of_the_model_that_is_named(tmp_path):
    work = made(tmp_path, "model", "selected", "onnx/model.onnx")
    with pytest.raises(UserError, match=rf"more than one .*: {work}/model, {work}/selected; name one with --model"):
        configure("serve", {"model": work})
    with pytest.raises(UserError, match=rf"--model {work}/selected: no ONNX file of `must export` is beside it; make"):
        configure("serve", {"model": f"{work}/selected"})
    made(tmp_path, "selected-onnx/model.onnx")
    for model, onnx in (("model", "onnx"), ("selected", "selected-onnx"), ("onnx", "onnx")):
        assert configure("serve", {"model": f"{work}/{model}"}).model == f"{work}/{onnx}"


@pytest.mark.parametrize(
    "stage, place, message",
    [
        ("evaluate", "nowhere", "--model nowhere: no such folder; give a folder that `must adapt` made"),
        ("export", "report/metrics.json", "--model report/metrics.json: no model of `must train` there"),
        ("export", "steps", "--model steps: no model of `must train` is in it; make it, or name it with --model"),
        ("serve", "steps", "--model steps: no ONNX file of `must export` is in it; make it, or name it with --model"),
    ],
)
def test_what_is_no_work_is_one_line(tmp_path, monkeypatch, stage, place, message):
    monkeypatch.chdir(tmp_path)
    made(tmp_path, "report/metrics.json", "steps/shards/index.json")
    with pytest.raises(UserError, match=message):
        configure(stage, {"model": place})
