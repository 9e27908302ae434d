"""WORK, and what each command says to type next: the lines are pasted, as a person would, and run."""

import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from must.api import cli, stages
from must.base.errors import UserError
from must.config.work import locate

SHORT = ["--preset", "digits", "--epochs", "1", "--batch-size", "50", "--workers", "0", "--device", "cpu"]
WAITS = ("review", "serve")  # for a signal
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
    assert (found.shards, found.output) == (f"{work}/shards", f"{work}/selected-report")
    assert (
        found.baseline == "" and configure("gate", {"model": f"{work}/model"}).metrics == f"{work}/report/metrics.json"
    )
    with pytest.raises(
        UserError, match="no report of `must evaluate` is beside it; make it, or name it with --metrics"
    ):
        configure("gate", {"model": f"{work}/selected"})
    assert len(locate(work).bundle) == 2 and not locate(f"{work}/nowhere")


@pytest.mark.parametrize(
    "stage, place, message",
    [
        ("evaluate", "nowhere", "--model nowhere: there is no such folder"),
        ("evaluate", ".", r"--model \.: holds no model of `must train` and nothing else of must"),
        ("export", "report/metrics.json", "is a file; give the folder that it is in: report"),
        ("export", "steps", "--model steps: holds no model of `must train`; make it, or name it with --model"),
        ("serve", "steps", "--model steps: holds no ONNX file of `must export`; make it, or name it with --model"),
    ],
)
def test_what_is_no_work_is_one_line(tmp_path, monkeypatch, stage, place, message):
    monkeypatch.chdir(tmp_path)
    made(tmp_path, "report/metrics.json", "steps/shards/index.json")
    shutil.move("report", "deep/report") if place == "." else None
    with pytest.raises(UserError, match=f"^{message}$" if place != "report/metrics.json" else message):
        configure(stage, {"model": place})


@pytest.mark.slow
def test_every_line_that_is_printed_runs(digits, tmp_path, monkeypatch, capsys):
    """Begun with the demo, and with single stages in a folder whose name the shell would take apart."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "classes.txt").write_text("".join(f"{path.name}\n" for path in digits.images.glob("test/*")))
    shutil.copytree(digits.images / "test", "photos")
    waiting, done, begun = ["must demo --output demo", 'must shard photos/ --output "it\'s work/shards"'], set(), set()
    while waiting:
        line = waiting.pop(0)
        words = shlex.split(line)[1:]
        stage = words[0]
        if line in done:
            continue
        done.add(line)
        again = stage in begun
        begun.add(stage)
        if stage in WAITS or (stage == "export" and again):  # which takes long
            cli.build_parser().parse_args(words)
            continue
        if stage == "classifier":
            words[words.index("--model") + 1] = "demo/model"
        if stage in ("adapt", "train"):
            words = [word for word in words if word not in ("--preset", "digits")] + SHORT
        cli.main(words)
        if stage == "demo":
            for path in [*Path("demo/images").rglob("*.png")][::8]:
                path.rename(path.with_suffix(".kept"))
            for path in Path("demo/images").rglob("*.*"):
                path.unlink() if path.suffix == ".png" else path.rename(path.with_suffix(".png"))
        shown = capsys.readouterr().err
        if "next: " in shown:
            waiting += re.sub("^ *", "", shown.partition("next: ")[2].rstrip(), flags=re.MULTILINE).split("\n")
    assert begun >= {"demo", "adapt", "predict", "review", "export", "serve", "sort", "shard", "index", "classifier"}
    assert begun >= {"train", "refine", "evaluate", "gate", "promote", "labels"}
    assert {"must review demo/work", "must export demo/work"} <= done
