"""WORK, the folder of one adaptation, in place of single paths."""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from must.api.cli import print_next
from must.api.run import configure as configure_stage
from must.api.work_state import describe_misplaced
from must.base.errors import UserError
from must.reviewing.review import describe_change, list_commands
from tests.zoo import put

configure: Callable[..., Any] = configure_stage  # each stage has parameters of its own


def made(folder, *places):
    """Empty files; a place that ends in .json or the like is one, else a bundle's folder."""
    for place in places:
        name = place if "." in Path(place).name else f"{place}/model.json"
        put(folder, {name: b'12345678{"__metadata__":{"must":"{}"}}' if name.endswith(".safetensors") else b"{}"})
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
    found = configure("export", {"model": f"{work}/", "to": "open_clip"})
    assert (found.metrics, found.output) == (f"{work}/report/metrics.json", f"{work}/open_clip")
    assert configure("serve", {"model": work}).model == f"{work}/onnx"
    assert configure("gate", {"model": work}).output == f"{work}/decision.json"
    (tmp_path / "config.yaml").write_text(f"model: {work}\n")
    assert configure("refine", {}, str(tmp_path / "config.yaml")).answers == ""
    made(tmp_path, "review/answers.jsonl", "test/index.json")
    found = configure("refine", {"model": work})
    assert found.answers == configure("review", {"model": work}).output == f"{work}/review"
    assert (found.model, found.output, found.shards) == (f"{work}/model", f"{work}/labels", f"{work}/shards")
    found = configure("evaluate", {"model": work})
    assert (found.shards, found.split) == (f"{work}/test", "test"), "labelled images, where there are any"


def test_a_report_of_the_model_before_is_left_out_or_made_again(tmp_path, caplog):
    work = made(tmp_path, "model", "report/metrics.json")
    (tmp_path / "model/model.json").write_text('{"weights_sha256": "new"}')
    (tmp_path / "report/metrics.json").write_text('{"model": {"weights_sha256": "old"}}')
    caplog.set_level(logging.INFO)
    assert configure("export", {"model": work}).metrics == "" and f"must evaluate {work} measures" in caplog.text
    for stage, values in (("gate", {}), ("promote", {"registry": "r", "name": "n"})):
        with pytest.raises(UserError, match=f"its report is of the model before; must evaluate {work} measures"):
            configure(stage, {"model": work, **values})
    (tmp_path / "report/metrics.json").unlink()
    assert configure("export", {"model": work}).metrics == ""


def test_after_a_review_elsewhere_the_next_command_names_its_answers(tmp_path):
    work = made(tmp_path, "model", "classifier.safetensors", "shards/index.json")
    given = {"model": work, "shards": f"{work}/shards"}
    for more, answers in ({}, f"{work}/review"), ({"output": f"{work}/her review"}, f"'{work}/her review'"):
        assert list_commands(configure("review", given | more)) == [f"must refine {work} --answers {answers}"]


def test_how_a_class_is_added_depends_on_how_adapt_was_given_the_names(tmp_path):
    work, names = made(tmp_path, "model", "classifier.safetensors", "shards/index.json"), tmp_path / "names.txt"
    config = configure("review", {"model": work, "shards": f"{work}/shards"})
    names.touch()
    assert describe_change(config) == {}
    for classes, file in (
        (["a", "b"], ""),
        ("a,b", ""),
        (str(names), str(names)),
        ("folders", None),
        ({"a": ["a"]}, None),
    ):
        (tmp_path / "adapt.json").write_text(json.dumps({"words": {"classes": classes}}))
        assert describe_change(config) == ({} if file is None else {"work": work, "file": file})
    (tmp_path / "adapt.json").write_text("{}")
    assert describe_change(config) == {}


def test_the_model_in_work_stands_for_work(tmp_path):
    work = made(tmp_path, "model", "classifier.safetensors", "shards/index.json", "report/metrics.json")
    assert configure("evaluate", {"model": f"{work}/model"}) == configure("evaluate", {"model": work})
    bundle = made(tmp_path / "elsewhere", "model")
    with pytest.raises(UserError, match="missing: --shards"):
        configure("evaluate", {"model": f"{bundle}/model"})


def test_the_next_commands_name_work_as_it_was_typed(tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    caplog.set_level(logging.INFO, "must")
    made(tmp_path / "my work", "model", "classifier.safetensors", "shards/index.json", "report/metrics.json")
    for stage, command in (("refine", "must evaluate"), ("evaluate", "must gate")):
        print_next(stage, configure(stage, {"model": "./my work/"}))
        assert caplog.messages == [f"next: {command} './my work'\n      must export './my work'"]
        caplog.clear()
    print_next("evaluate", configure("evaluate", {"model": "my work", "output": "o"}))
    assert caplog.messages[0].startswith("next: must gate --metrics o/metrics.json ")


@pytest.mark.parametrize(
    ("wrong", "asked", "said"),
    [
        (3, 3, "text: my/labels/folders.csv; `must review my` shows them first"),
        (3, 1, "text, 2 of them by answers: my/labels/folders.csv; `must review my` shows the others first"),
        (3, 0, "text, 3 of them by answers: my/labels/folders.csv"),
        (0, 0, "text, as far as the model can tell the classes apart"),
    ],
)
def test_pictures_in_a_wrong_folder_that_somebody_named_are_told_apart(wrong, asked, said):
    assert describe_misplaced({"wrong": wrong, "asked": asked, "text": "text"}, "my") == said
