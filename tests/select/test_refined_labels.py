"""`must train --pseudo-labels refined`: zero-shot's classes, corrected by look-alikes, at the start of training."""

import json

import numpy as np
import pytest
import torch

from must.base.parameters import load
from must.config import TrainConfig
from must.method.select.refined_labels import LEAST, START, RefinedLabels, share_at
from must.method.train.presets import preset
from must.method.train.trainer import train
from tests.evaluate.digits import digits as make_digits
from tests.train.processes import on_ranks


@pytest.fixture(scope="module")
def digits():
    return make_digits()


def labels():
    return RefinedLabels.of(np.array([2, 5, 9]), np.array([[0.5, 0.5, 0], [0, 1, 0], [0.2, 0.3, 0.5]], np.float32))


def test_the_mean_of_the_logarithms():
    logits = torch.tensor([[2.0, 0.0, 1.0], [2.0, 0.0, 1.0], [2.0, 0.0, 1.0]])
    mixed = labels().mixed(logits, torch.tensor([9, 4, 5]), 0.25)
    teacher = logits.log_softmax(-1)
    expected = 0.75 * teacher[0] + 0.25 * torch.tensor([0.2, 0.3, 0.5]).log()
    torch.testing.assert_close(mixed[0], expected, rtol=1e-3, atol=1e-3)  # they are kept in half precision
    assert torch.equal(mixed[1], teacher[1]), "an image that was not looked at"
    assert mixed[2, 0] == pytest.approx(0.75 * teacher[2, 0].item() + 0.25 * np.log(LEAST), rel=1e-3)
    assert labels().mixed(logits, torch.tensor([99, 0, 2]), 0.5)[0].equal(teacher[0]), "beyond the last one"


def test_they_go_within_a_third_of_the_run():
    shares = [share_at(step, 90) for step in range(90)]
    assert shares[0] == START and shares == sorted(shares, reverse=True)
    assert shares[29] > 0 and not any(shares[30:])


def test_what_was_saved_is_found_and_what_is_damaged_is_not(tmp_path):
    place = str(tmp_path / "labels.npz")
    assert RefinedLabels.load(place, 3) is None
    labels().save(place)
    found = RefinedLabels.load(place, 3)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(found, labels(), strict=True))
    assert RefinedLabels.load(place, 4) is None
    whole = (tmp_path / "labels.npz").read_bytes()
    for damaged in (b"", whole[:100], whole[: len(whole) // 2], b"no zip at all"):
        (tmp_path / "labels.npz").write_bytes(damaged)
        assert RefinedLabels.load(place, 3) is None


def training(digits, output, **changes):
    places = {"shards": digits.shards, "classifier": digits.classifier, "output": str(output)}
    settings = {"epochs": 4, "batch_size": 50, "workers": 0, "seed": 1, "log_every": 1, "device": "cpu"}
    settings |= {"select": "none", "pseudo_labels": "refined", "checkpoint_every": 1, "keep_every": 1} | changes
    return load(TrainConfig, places | settings, None, preset("digits", "tiny"))


def final(folder):
    return (folder / "model.safetensors").read_bytes()


@pytest.mark.slow
def test_a_run_that_goes_on_is_the_same_run(digits, tmp_path):
    """Also where the file with the refined classes is gone, and its images are looked at again."""
    train(training(digits, tmp_path / "whole"))
    train(training(digits, tmp_path / "teacher", pseudo_labels="teacher"))
    assert final(tmp_path / "whole") != final(tmp_path / "teacher"), "else nothing is shown here"
    whole = tmp_path / "whole"
    files = list((whole / "checkpoints").glob("refined-*.npz"))
    assert len(files) == 1
    expected = final(whole)
    for gone in (False, True):
        for path in (whole / "checkpoints").glob("step-*"):
            if int(path.stem.removeprefix("step-")) > 2:
                path.unlink()
        (whole / "checkpoints/LAST").unlink()
        (whole / "model.safetensors").unlink()
        if gone:
            files[0].unlink()
        train(training(digits, whole))
        assert final(whole) == expected


def test_without_knowing_look_alikes_they_are_the_teachers(digits, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("must.method.select.refine.KNOWING", 0.99)
    train(training(digits, tmp_path / "ours", epochs=1))
    assert "the teacher's alone" in capsys.readouterr().out
    train(training(digits, tmp_path / "teacher", epochs=1, pseudo_labels="teacher"))
    assert final(tmp_path / "ours") == final(tmp_path / "teacher")


def train_on_a_rank(digits, output):
    torch.set_num_threads(1)
    train(training(digits, output, epochs=1))


def first_step(folder):
    return json.loads((folder / "train_log.jsonl").read_text().splitlines()[0])["loss_self_training"]


@pytest.mark.slow
def test_all_processes_have_them(digits, tmp_path):
    on_ranks(2, train_on_a_rank, digits, tmp_path / "two")
    for name, labels in [("one", "refined"), ("teacher", "teacher")]:
        train(training(digits, tmp_path / name, epochs=1, pseudo_labels=labels))
    one, two, teacher = (first_step(tmp_path / name) for name in ("one", "two", "teacher"))
    assert one == pytest.approx(two, rel=1e-5) and abs(one - teacher) > 1e-3
