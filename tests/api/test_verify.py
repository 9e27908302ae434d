"""`must verify`: what it says where there is no GPU, and each check itself, tried on a CPU through the same code."""

from __future__ import annotations

import json

import pytest
import torch

from must.api import cli
from must.api.demo import asset_folder
from must.api.verify import runs, speed, steps, table, weights
from must.api.verify.single import CheckFailedError, Setting, demand
from must.method.train import compiled
from tests.api.published import published


@pytest.fixture
def setting(digits, tmp_path):
    """With the tests' digits instead of its own."""
    torch.set_num_threads(1)
    found = Setting("cpu", 2, tmp_path)
    found.__dict__["data"] = {"shards": digits.shards, "classifier": digits.classifier}
    return found


def test_without_a_gpu_everything_is_named_and_nothing_tried(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    cli.main(["verify", "--json", str(tmp_path / "found.json")])
    first, *lines, count, file = capsys.readouterr().out.splitlines()
    assert first.startswith("must verify: no CUDA GPU, torch ")
    assert [line.split()[:3] for line in lines] == [["not", "tried", name] for name in table.CHECKS]
    assert "there is no CUDA GPU here" in lines[0] and count == f"0 pass, 0 fail, {len(table.CHECKS)} not tried"
    found = json.loads((tmp_path / "found.json").read_text())
    assert file.startswith(str(tmp_path)) and found["machine"]["gpus"] == []
    assert {check["status"] for check in found["checks"]} == {"not tried"}


@pytest.mark.parametrize(
    "flags, line",
    [
        (["--only", "spede-b16"], r"--only spede-b16: unknown; did you mean 'speed-b16'?"),
        (["--device", "tpu"], r"--device tpu: must be cuda or cpu"),
    ],
)
def test_a_wrong_flag_is_one_line(flags, line, capsys):
    with pytest.raises(SystemExit) as end:
        cli.main(["verify", *flags])
    error = capsys.readouterr().err
    assert end.value.code == 2 and line in error and error.count("\n") == 1


def test_why_a_check_is_not_tried():
    check = table.CHECKS["gpus"]
    assert table.why_not(check, "cuda", 1, False, False) == "takes 2 GPUs"
    assert table.why_not(check, "cuda", 2, False, False) == ""
    hub = table.CHECKS["adaptation"]
    assert "--long" in table.why_not(hub, "cuda", 1, True, False)
    assert table.why_not(hub, "cuda", 1, False, True) == "no hub can be reached from here"
    assert table.why_not(hub, "cuda", 1, True, True) == ""


def test_every_check_is_a_function():
    for check in table.CHECKS.values():
        module, name, *_ = check.function.split(":")
        assert callable(getattr(__import__(f"must.api.verify.{module}", fromlist=[name]), name))


def test_a_check_that_finds_otherwise_has_failed():
    with pytest.raises(CheckFailedError, match="too far") as error:
        demand(False, "too far", distance=3)
    assert error.value.values == {"distance": 3}


@pytest.mark.slow
@pytest.mark.parametrize("check", [steps.precision, steps.views, steps.waits, steps.accumulate, speed.attention])
def test_a_check_of_steps_passes_on_a_cpu(check, setting):
    detail, values = check(setting)
    assert detail and json.dumps(values)


@pytest.mark.slow
def test_precision_fails_where_the_losses_part(setting, monkeypatch):
    monkeypatch.setattr(steps, "BF16_APART", 0.0)
    with pytest.raises(CheckFailedError, match="largest difference"):
        steps.precision(setting)


@pytest.mark.slow
def test_compile_fails_where_the_blocks_run_as_they_are(setting, monkeypatch):
    monkeypatch.setattr(compiled, "BACKEND", "nothing")
    with pytest.raises(CheckFailedError, match="nothing"):
        steps.compiled(setting)


@pytest.mark.slow
def test_speed_is_measured_beside_the_plain_loop(setting):
    detail, values = speed.speed(setting, "ViT-B-16-quickgelu")
    assert all(values[f"{name}images_per_s"] > 0 for name in ("", "compiled_", "plain_"))
    assert 0 < values["share_of_peak"] < 1 and 0 < values["busy"] <= 1 and values["kernels"] and "plain loop" in detail
    assert values["calculated_memory"] > 0
    assert speed.loaders(setting)[1].keys() == {"exact", "fast", "gpu"}


@pytest.mark.slow
def test_runs_are_killed_and_spread_over_processes(setting):
    assert runs.resume(setting)[0].startswith("equal to the bit")
    assert runs.resume(setting, "all")[0].startswith("equal to the bit")
    assert runs.all_gpus(setting)[1]["ours"] and runs.fsdp(setting)[1]["ours"]


@pytest.mark.slow
def test_a_check_is_a_process_whose_end_is_reported(tmp_path, monkeypatch):
    broken = table.Check("steps:nothing", "there is no such function")
    monkeypatch.setitem(table.CHECKS, "broken", broken)
    outcome = table.run("broken", "cpu", 2, tmp_path)
    assert (outcome.status, "AttributeError" in outcome.detail) == ("fail", True)
    monkeypatch.setitem(table.CHECKS, "broken", broken._replace(function="steps:precision", seconds=0))
    assert "did not end within 0 s" in table.run("broken", "cpu", 2, tmp_path).detail


@pytest.mark.slow
def test_checks_with_pretrained_weights_run_to_their_end(setting, monkeypatch, tmp_path):
    """With the bundled model in place of OpenAI's; the pictures come in the published files, of which these are few."""
    monkeypatch.setattr(weights, "MODEL", str(asset_folder()))
    monkeypatch.setattr(weights, "PRETRAINED", "")
    for name, percent in (("pets", 200.0), ("cifar10", 50.0)):
        known = weights.PICTURES[name]._replace(published=percent, templates=["a {}"])  # this model takes 24 tokens
        monkeypatch.setitem(weights.PICTURES, name, known)
    with published(tmp_path, monkeypatch):
        with pytest.raises(CheckFailedError, match=r"%, published 200.0%") as error:
            weights.zero_shot(setting, "pets")
        monkeypatch.setattr(weights, "APART", 101)
        assert weights.zero_shot(setting, "cifar10")[1]["images"] == error.value.values["images"] == 12
        detail, values = weights.adaptation(setting, "cifar10")
    assert "is kept; kappa" in detail and values["selection"] and values["images"] == 12 and json.dumps(values)
    assert {one.name for one in (tmp_path / "pets/test").iterdir()} == {"Abyssinian", "American Bulldog", "Bengal"}
    assert len(list((tmp_path / "cifar10/train").rglob("*.png"))) == 90
