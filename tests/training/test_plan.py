"""`must plan`: the numbers are those of the run, and nothing is written."""

import json
from dataclasses import replace

import pytest

from must.api import cli
from must.base.parameters import load
from must.config import PlanConfig, TrainConfig
from must.training import plan as planning
from must.training.log import Size
from must.training.trainer import train

pytestmark = pytest.mark.usefixtures("briefly")
SETTINGS = {"epochs": 2, "batch_size": 25, "workers": 1}


def config(digits, kind=TrainConfig, **changes):
    values = {"shards": digits.shards, "classifier": digits.classifier, "preset": "digits", **SETTINGS, **changes}
    return load(kind, values)


@pytest.fixture
def briefly(monkeypatch):
    monkeypatch.setattr(planning, "MEASURED", 0.05)


def test_the_command_prints_the_plan_and_writes_nothing(digits, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    flags = [part for name, value in SETTINGS.items() for part in (f"--{name.replace('_', '-')}", str(value))]
    inputs = ["--shards", digits.shards, "--classifier", digits.classifier, "--preset", "digits"]
    cli.main(["plan", *inputs, *flags])
    model, steps, files, settings, one_pass, cost = capsys.readouterr().out.splitlines()
    assert "150 images of 'train'" in model and "10 classes" in model
    assert steps == "12 steps of 25 images (2 epochs), 1 process(es) on cpu in fp32, 1 thread(s) and 1 loader(s) each"
    assert files.startswith("checkpoints: ") and files.endswith(" for 2 of them")
    assert ", lr 0.004, " in settings and "epochs" not in settings and settings.endswith(" of must/config/presets.yaml")
    assert " for one pass over the images, which gives the model its memory" in one_pass
    assert "for 12 steps on this machine: " in cost and "after one to warm up" in cost and "memory: " in cost
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_the_numbers_are_those_of_the_run(digits, tmp_path):
    planned = planning.plan(config(digits, PlanConfig, json=str(tmp_path / "plan.json")))
    assert json.loads((tmp_path / "plan.json").read_text()) == planned
    summary = train(config(digits, output=str(tmp_path / "model")))
    assert (planned["steps"], planned["images"]) == (summary.steps, 150)
    states = [path.stat().st_size for path in (tmp_path / "model/checkpoints").glob("*.pt")]
    assert len(states) == planned["checkpoints_kept"]
    for size in states:
        assert size == pytest.approx(planned["checkpoint_bytes"], rel=0.05)
    step = planned["step"]
    assert step["measured"] >= 3 and step["least"] <= step["mean"] <= step["most"]
    assert planned["seconds"] == pytest.approx(12 * step["mean"]) and step["memory"] > 5e7


@pytest.mark.slow
def test_runs_of_fewer_steps_than_are_measured(digits):
    planned = planning.plan(config(digits, PlanConfig, batch_size=150, epochs=1))
    assert planned["steps"] == 1 and planned["step"]["measured"] >= 3


@pytest.mark.parametrize("accumulate, images", [(1, planning.FEW), (5, 5)])
def test_steps_that_take_minutes_are_measured_by_a_few_images(digits, monkeypatch, accumulate, images):
    monkeypatch.setattr(planning, "LONG", 0.0)
    found = planning.plan(config(digits, PlanConfig, accumulate=accumulate))
    assert found["step"]["images"] == images
    assert found["images_per_s"] == pytest.approx(25 / found["step"]["mean"])


SIZE = Size(10_000, 40, 1, 256, 256, 1, 2, "cpu", 150_000_000, 2_400_000_000, 3, 0, 0)


def test_the_size_warns_of_a_real_model_on_a_cpu_and_says_what_the_cache_will_hold():
    assert "hours or days on a CPU" in SIZE.lines()[2] and "use a GPU" in SIZE.lines()[2]
    assert "steps of 256 images in pieces of 64 (" in replace(SIZE, micro_batch=64).lines()[0]
    assert len(replace(SIZE, device="cuda").lines()) == len(replace(SIZE, parameters=900_000).lines()) == 2
    assert SIZE.lines()[1] == "checkpoints: 2.4 GB each, 7.2 for 3 of them"
    remote = replace(SIZE, shards_bytes=40 * 10**9, cache_bytes=30 * 10**9)
    assert remote.lines()[1].endswith("; cache: up to 30 of 40 GB of remote shards")
