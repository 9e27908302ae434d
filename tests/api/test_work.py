"""WORK, the folder of one adaptation: in place of single paths, and new parts of it exchanged for old ones."""

import contextlib
import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from must.api import stages, work_state
from must.api.cli import print_next
from must.base.errors import UserError
from must.deploy.review.review import list_commands
from tests.zoo import put

configure: Callable[..., Any] = stages.configure  # each stage has parameters of its own


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
    for more, options in ({}, ""), ({"output": f"{work}/her review"}, f" --answers '{work}/her review'"):
        assert list_commands(configure("review", given | more)) == [f"must refine {work}{options}"]


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


class Killed(BaseException):
    pass


@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize("number", range(1, 16))
def test_an_exchange_that_is_killed_anywhere_is_completed(tmp_path, monkeypatch, number, trained):
    """After every single operation on files. A trained model in before/ gives way to another trained one only."""

    def dying(function):
        def wrapped(*arguments, **options):
            result = function(*arguments, **options)
            operations.append(function)
            if len(operations) == number:
                raise Killed
            return result

        return wrapped

    operations = []
    parts, new = ["classifier.safetensors", "labels", "model", "shards", "adapt.json"], tmp_path / ".next-1"
    for folder, text in ((tmp_path, "old"), (new, "new"), (tmp_path / "before", "oldest")):
        places = [parts[0], *(f"{part}/file" for part in parts[1:4]), parts[4]]
        put(folder, dict.fromkeys(places, text.encode()))
    (tmp_path / "onnx").write_text("old")
    origin = {"provenance": {"config": {"epochs": 1}}}
    (tmp_path / "before/model/model.json").write_text(json.dumps(origin if trained else {}))
    (tmp_path / "photo.png").write_text("the user's")
    (new / "old").mkdir()
    (new / "exchange.json").write_text(json.dumps({"old": [*parts, "onnx"], "new": parts}))
    with monkeypatch.context() as patch:
        for owner, name in ((Path, "rename"), (Path, "unlink"), (shutil, "rmtree")):
            patch.setattr(owner, name, dying(getattr(owner, name)))
        with contextlib.suppress(Killed):
            work_state.exchange(tmp_path, new)
    assert len(operations) == min(number, 14 if trained else 15)
    if (new / "exchange.json").exists():
        work_state.exchange(tmp_path, new)
    shutil.rmtree(new, ignore_errors=True)  # as the end of the next call does
    for folder, text in ((tmp_path, "new"), (tmp_path / "before", "oldest" if trained else "old")):
        assert [(folder / place).read_text() for place in places] == [text] * 5
    assert (tmp_path / "before/onnx").exists() and not (tmp_path / "onnx").exists()
    assert (tmp_path / "photo.png").read_text() == "the user's" and not new.exists()


@pytest.mark.parametrize("there", ["onnx", "labels"])
def test_what_other_stages_made_of_a_model_does_not_replace_what_is_in_before(tmp_path, there):
    exchange = json.dumps({"old": ["onnx"], "new": []}).encode()
    put(tmp_path, {".next-1/exchange.json": exchange, "onnx": b"outdated", f"before/{there}": b"before"})
    (tmp_path / ".next-1/old").mkdir()
    work_state.exchange(tmp_path, tmp_path / ".next-1")
    assert (tmp_path / "before" / there).read_text() == "before" and (tmp_path / "before/onnx").exists()
    assert not (tmp_path / "onnx").exists() and not (tmp_path / ".next-1").exists()
