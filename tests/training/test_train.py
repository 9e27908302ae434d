"""Training as users run it: real processes that are killed, stopped and run again, and what a run leaves behind."""

import hashlib
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from unittest.mock import Mock

import pytest
import torch
from safetensors.torch import load_file, save_file

from must.api.cli import main
from must.config import RefineConfig, ShardConfig, TrainConfig
from must.data.shards.build import shard
from must.evaluation.figures import read_training_log
from must.memory.refine import refine
from must.model.bundle import load_bundle
from must.model.classifier import load_text_classifier, save_classifier
from must.model.description import load_description
from must.model.distributed import Preempted
from must.model.hub import OPEN_CLIP_WEIGHTS
from must.training import trainer
from must.training.checkpoint import load_state
from must.training.log import warn_unlearned
from must.training.trainer import train
from tests.common import ended
from tests.training.lives import difference, log_of, same, start, training, wait_for_step, weights

SETTINGS = {
    "epochs": 3, "batch_size": 25, "workers": 1, "checkpoint_every": 3, "keep_checkpoints": 2, "log_every": 2,
    "seed": 1, "pseudo_labels": "teacher",
}  # fmt: skip
STEPS = 18  # 150 images, 6 batches an epoch
config: Callable[..., TrainConfig] = partial(training, **SETTINGS)


def run(digits, output, **changes):
    """(exit code, output) of a run to its end."""
    return start(digits, output, **SETTINGS | changes).wait(120), log_of(output)


def start_and_stop(digits, output, number, **changes):
    """Starts a run, sends it a signal once the checkpoint of step 6 is whole, returns (exit code, output)."""
    process = start(digits, output, **SETTINGS | changes)
    wait_for_step(process, output, 6)
    process.send_signal(number)
    return process.wait(120), log_of(output)


@pytest.fixture(scope="module")
def uninterrupted(digits, tmp_path_factory):
    output = tmp_path_factory.mktemp("uninterrupted")
    return output, train(config(digits, output))


@pytest.fixture(scope="module")
def one_epoch(digits, tmp_path_factory):
    """(folder, summary) of a run without worker processes. Only read the weights."""
    output = tmp_path_factory.mktemp("one-epoch")
    return output, train(config(digits, output, epochs=1, workers=0))


def test_a_run_leaves_a_bundle_a_log_and_its_story(uninterrupted, digits):
    output, summary = uninterrupted
    assert (summary.steps, summary.images, summary.skipped_steps) == (STEPS, STEPS * 25, 0)
    description = load_description(str(output))
    assert description.provenance.config["seed"] == 1 and len(description.provenance.index_sha256) == 64
    lines = read_training_log(str(output))
    assert [line["step"] for line in lines] == list(range(1, STEPS, 2))
    told = {"loss_self_training", "confident", "agreement", "stability", "lr", "images_per_s"}
    assert all(told <= line.keys() and 0 <= line["stability"] <= 1 for line in lines)
    assert lines[-1]["loss_reconstruction"] < lines[0]["loss_reconstruction"]
    assert load_bundle(str(output)).model.classifier.shape == (64, 10)


def test_a_killed_run_goes_on_to_the_same_weights_bit_for_bit(digits, uninterrupted, tmp_path):
    output = tmp_path / "run"
    assert start_and_stop(digits, output, signal.SIGKILL)[0] == -signal.SIGKILL
    assert not (output / "model.json").exists()
    code, text = run(digits, output)
    assert code == 0, text
    assert "going on after step" in text
    assert difference(output, uninterrupted[0]) == 0.0
    lines = read_training_log(str(output))
    assert [line["step"] for line in lines] == list(range(1, STEPS, 2))


@pytest.mark.slow
def test_a_stopped_run_goes_on_in_another_folder_with_its_whole_log(digits, uninterrupted, tmp_path):
    """A pod that is tried again starts with an empty disk: only the checkpoints are left."""
    output = tmp_path / "first"
    code, text = start_and_stop(digits, output, signal.SIGTERM)
    assert code == 75 and "run the same command to go on" in text and not (output / "model.json").exists()
    shutil.copytree(output / "checkpoints", tmp_path / "checkpoints")
    train(config(digits, tmp_path / "second", checkpoints=str(tmp_path / "checkpoints")))
    assert difference(tmp_path / "second", uninterrupted[0]) == 0.0
    steps = [
        [line["step"] for line in read_training_log(str(place))] for place in (tmp_path / "second", uninterrupted[0])
    ]
    assert steps[0] == steps[1]


def test_a_model_that_an_older_run_left_is_not_taken_for_that_of_this_one(digits, tmp_path, monkeypatch):
    """Stopped between the trained weights, which are written first, and the model."""
    values = {"epochs": 1, "workers": 0, "alpha": 0.5}
    train(config(digits, tmp_path / "fresh", **values, lr=0.001))
    train(config(digits, tmp_path / "run", **values))
    with monkeypatch.context() as patch:
        patch.setattr(trainer, "build_memory", Mock(side_effect=Preempted))
        with pytest.raises(Preempted):
            train(config(digits, tmp_path / "run", **values, lr=0.001, resume=False))
    train(config(digits, tmp_path / "run", **values, lr=0.001))
    assert difference(tmp_path / "run", tmp_path / "fresh") == 0.0


def test_a_finished_run_has_nothing_left_to_do_and_refuses_other_settings(digits, one_epoch, tmp_path):
    output = tmp_path / "run"
    shutil.copytree(one_epoch[0], output)
    before = (output / "model.safetensors").read_bytes()
    again = train(config(digits, output, epochs=1, workers=0))
    assert again.seconds == pytest.approx(one_epoch[1].seconds, abs=0.5)
    assert (output / "model.safetensors").read_bytes() == before
    places = {"shards": digits.shards, "classifier": digits.classifier, "model": str(output)}
    refine(RefineConfig(**places, output=str(tmp_path / "labels"), alpha=0.2, workers=0, device="cpu"))
    taught = (output / "model.safetensors").read_bytes()
    train(config(digits, output, epochs=1, workers=0))
    assert (output / "model.safetensors").read_bytes() == taught != before, "what `must refine` added stays"
    (output / "model.safetensors").write_bytes(taught[:-1])
    train(config(digits, output, epochs=1, workers=0))
    assert len((output / "model.safetensors").read_bytes()) == len(before), "a damaged model is made anew"
    with pytest.raises(ValueError, match=r"other settings: epochs \(1 -> 2\), lr \(0.004 -> 0.001\); use those"):
        train(config(digits, output, epochs=2, lr=0.001))
    with pytest.raises(ValueError, match=r"other settings: sha256 of the image tower \("):
        train(config(digits, output, epochs=1, workers=0, classifier=with_other_tower(digits, tmp_path / "other")))
    assert train(config(digits, output, epochs=1, workers=0, lr=0.001, resume=False)).steps == 6
    assert (output / "model.safetensors").read_bytes() != before


def with_other_tower(digits, folder):
    """A classifier file whose model differs in one bias of the image tower."""
    classifier = load_text_classifier(digits.classifier)
    shutil.copytree(classifier.model_folder, folder)
    weights = load_file(folder / OPEN_CLIP_WEIGHTS)
    weights["visual.ln_post.bias"] += 1
    save_file(weights, folder / OPEN_CLIP_WEIGHTS)
    sha256 = hashlib.sha256((folder / OPEN_CLIP_WEIGHTS).read_bytes()).hexdigest()
    file = str(folder.with_suffix(".safetensors"))
    save_classifier(replace(classifier, model_folder=str(folder), model_sha256=sha256), file)
    return file


def test_labels_make_no_difference(digits, one_epoch, tmp_path):
    shards = str(tmp_path / "shards")
    source = str(digits.images / "train")
    shard(ShardConfig(source=source, labels="none", output=shards, samples_per_shard=64, workers=1))
    train(config(digits, tmp_path / "run", shards=shards, epochs=1, workers=0))
    assert difference(tmp_path / "run", one_epoch[0]) == 0.0


@pytest.mark.parametrize("workers", [2, "auto"])
def test_worker_count_makes_no_difference(digits, one_epoch, tmp_path, workers):
    train(config(digits, tmp_path, epochs=1, workers=workers))
    assert difference(tmp_path, one_epoch[0]) == 0.0
    assert load_description(str(tmp_path)).provenance.config["workers"] == workers


@pytest.mark.parametrize(
    "epochs, batch, skipped, attempts", [(2, 8, r"2\d of 2\d", 1), (1, 25, "5 of 6", 2), (1, 75, "1 of 2", 1)]
)
def test_numbers_that_stop_being_numbers_stop_the_run(digits, tmp_path, epochs, batch, skipped, attempts):
    """A short run too, and when it is started again. Checkpoints between log lines hold the count."""
    changes = {"lr": 1e30, "epochs": epochs, "batch_size": batch, "workers": 0, "log_every": 11, "checkpoint_every": 1}
    settings = config(digits, tmp_path, **changes, keep_checkpoints=99)
    for _ in range(attempts):
        with pytest.raises(ValueError, match=f"gradients of {skipped} steps were not finite; lower --lr"):
            train(settings)
    assert not (tmp_path / "model.json").exists()
    if batch < 75:
        assert load_state(tmp_path / "checkpoints" / "step-000000004.pt")["progress"]["skipped"] == 3


def test_a_model_whose_probabilities_are_not_numbers_is_not_written(digits, tmp_path):
    """After a single step no other step notices it."""
    with pytest.raises(ValueError, match=r"features of 150 images are not finite numbers"):
        train(config(digits, tmp_path, lr=1e30, epochs=1, batch_size=150, workers=0, alpha=0.5))
    assert not (tmp_path / "model.json").exists() and not (tmp_path / "adapted").exists()


def test_a_truncated_shard_is_one_clear_line(digits, tmp_path, capfd):
    shards = tmp_path / "shards"
    shard(ShardConfig(source=str(digits.images / "train"), output=str(shards), workers=1))
    tar = next(shards.glob("train-*.tar"))
    tar.write_bytes(tar.read_bytes()[:2000])
    places = [f"--shards={shards}", f"--classifier={digits.classifier}", f"--output={tmp_path}/out"]
    line = ended(capfd, 2, main, ["train", *places, "--preset=digits", "--batch-size=25"])
    assert line.startswith("must train: ") and "has 2000 bytes, its index says" in line and "must index verify" in line
    assert not (tmp_path / "out" / "model.json").exists()


def test_a_run_that_learned_nothing_of_the_classes_says_so():
    assert warn_unlearned([{"confident": 0.0}, {"confident": 0.004}]).startswith("warning: the model was never sure")
    assert warn_unlearned([{"confident": 0.0}, {"confident": 0.2}]) == warn_unlearned([]) == ""


half_way = partial(training, epochs=2, batch_size=50, workers=0, seed=1, log_every=2, alpha=0.5)


@pytest.fixture(scope="module")
def half_trained(digits, tmp_path_factory):
    output = tmp_path_factory.mktemp("trained")
    train(half_way(digits, output))
    return output


def test_the_model_is_half_way_and_remembers_the_images_and_all_of_it_lies_beside(digits, half_trained):
    folders = half_trained, half_trained / "adapted"
    provenance, beside = (load_description(str(folder)).provenance for folder in folders)
    assert provenance.selection.alpha == 0.5
    assert provenance.selection.check.images == 150 >= provenance.memory.images > 100
    assert provenance.memory.answers == 0
    assert beside.selection is None and beside.memory is None and beside.summary == provenance.summary
    start, half, end = (weights(folder)["classifier"] for folder in (digits.zero_shot, *folders))
    torch.testing.assert_close(half, (start + end) / 2)
    assert not torch.allclose(half, end)


class Killed(BaseException):
    pass


@pytest.mark.slow
def test_a_run_killed_before_its_model_was_written_ends_in_the_same(digits, half_trained, tmp_path, monkeypatch):
    output = tmp_path / "model"
    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr(trainer, "build_memory", Mock(side_effect=Killed))
        train(half_way(digits, output))
    assert not (output / "model.json").exists()
    train(half_way(digits, output))
    for name in ("model.safetensors", "adapted/model.safetensors"):
        assert (output / name).read_bytes() == (half_trained / name).read_bytes()
    assert train(half_way(digits, output, alpha=1)).steps and not (output / "adapted").exists()
    assert same(weights(output), weights(half_trained / "adapted")), "alpha 1 is all of it, and nothing lies beside it"
