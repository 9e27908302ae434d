"""`must select` and `must train --select ladder` on the bundled digits."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from must.base.parameters import load
from must.config import SelectConfig, ShardConfig, TrainConfig
from must.data.format.index import load_index
from must.data.shards.build import shard
from must.method.model.bundle import load_bundle, load_description, save_bundle, zero_shot_bundle
from must.method.model.classifier import load_text_classifier, save_classifier
from must.method.select.rung_predictions import affordable
from must.method.select.select import select
from must.method.train import trainer
from must.method.train.presets import preset
from must.method.train.trainer import train
from tests.evaluate.digits import digits as make_digits


@pytest.fixture(scope="module")
def digits():
    return make_digits()


def selected(digits, model, output, **changes):
    values = {"model": str(model), "baseline": digits.classifier, "shards": digits.shards, "output": str(output)}
    return select(SelectConfig(**{**values, "workers": 0, "device": "cpu", **changes}))


def weights(folder):
    return load_file(f"{folder}/model.safetensors")


def test_a_better_model_is_kept(digits, tmp_path):
    """It was tuned with labels on these images, which is what makes it better."""
    choice = selected(digits, digits.adapted, tmp_path)
    assert choice.climb.alpha >= 0.3, choice.climb
    kept = load_description(str(tmp_path))
    assert kept.provenance["selection"]["alpha"] == choice.climb.alpha
    assert kept.provenance["index_sha256"] == "0" * 64, "the story so far stays"
    start, end, found = weights(digits.zero_shot), weights(digits.adapted), weights(tmp_path)
    expected = torch.lerp(start["classifier"], end["classifier"], choice.climb.alpha)
    assert torch.equal(found["classifier"], expected)


@pytest.mark.parametrize("damage", ["names", "nan"])
def test_a_ruined_model_becomes_zero_shot_to_the_bit(digits, tmp_path, damage):
    bundle = load_bundle(digits.adapted)
    names = bundle.model.classifier.data
    if damage == "names":  # every class has another's name, from the first step on
        names[:] = zero_shot_bundle(load_text_classifier(digits.classifier)).model.classifier.data.roll(1, dims=1)
        bundle.model.visual.load_state_dict(load_bundle(digits.zero_shot).model.visual.state_dict())
    else:
        names[0, 0] = torch.nan
    save_bundle(str(tmp_path / "ruined"), bundle.model, bundle.description)
    choice = selected(digits, tmp_path / "ruined", tmp_path / "kept")
    zero_shot = zero_shot_bundle(load_text_classifier(digits.classifier))
    kept = load_bundle(str(tmp_path / "kept"))
    assert choice.climb.kept_zero_shot and choice.climb.reason
    ours = {name: value for name, value in kept.model.state_dict().items() if name.startswith(("visual", "classifier"))}
    assert all(torch.equal(value, zero_shot.model.state_dict()[name]) for name, value in ours.items())
    assert kept.model.logit_factor == zero_shot.model.logit_factor


def test_a_classifier_of_another_task_is_refused(digits, tmp_path):
    other = load_text_classifier(digits.classifier)
    save_classifier(replace(other, weights=other.weights[:, :9], classes=other.classes[:9]), str(tmp_path / "nine"))
    with pytest.raises(ValueError, match="has other classes"):
        selected(digits, digits.adapted, tmp_path / "kept", baseline=str(tmp_path / "nine"))
    assert not (tmp_path / "kept").exists()


def training(digits, output, **changes):
    values = {"shards": digits.shards, "classifier": digits.classifier, "output": str(output)}
    settings = {"epochs": 2, "batch_size": 50, "workers": 0, "seed": 1, "log_every": 2, "select": "ladder", **changes}
    return load(TrainConfig, {**values, **settings}, preset=preset("digits", "any"))


def test_a_run_that_learned_nothing_true_ends_as_zero_shot(digits, tmp_path, capsys):
    """A learning rate that ruins the model: what comes out is zero-shot's, and the run says so."""
    train(training(digits, tmp_path, lr=0.5))
    zero_shot = zero_shot_bundle(load_text_classifier(digits.classifier)).model.state_dict()
    kept = weights(tmp_path)
    assert all(torch.equal(kept[name], zero_shot[name]) for name in kept if name.startswith(("visual", "classifier")))
    assert "kept zero-shot: " in capsys.readouterr().out
    story = json.loads((tmp_path / "model.json").read_text())["provenance"]["selection"]
    assert story["kept_zero_shot"] and story["images"] <= 150


@pytest.mark.slow
def test_choosing_again_gives_the_same_bytes(digits, tmp_path, monkeypatch):
    """A run that was killed while it chose goes on after its last step, and chooses the same."""
    torch.set_num_threads(1)
    monkeypatch.setattr("must.method.select.ladder.NEEDED", 0.0)  # so short a run convinces nobody
    monkeypatch.setattr("must.method.select.ladder.SLOPE", 0.0)
    train(training(digits, tmp_path, select="none"))
    full = weights(tmp_path)
    train(training(digits, tmp_path))  # nothing left to train
    first = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "model.json").unlink()
    train(training(digits, tmp_path))
    assert (tmp_path / "model.safetensors").read_bytes() == first
    assert load_description(str(tmp_path)).provenance["selection"]["alpha"], "so that the bytes mean something"
    (tmp_path / "again").mkdir()
    (tmp_path / "again" / "model.safetensors").write_bytes(first)
    save_file(full, tmp_path / "model.safetensors")
    selected(digits, tmp_path, tmp_path / "by-stage")
    ours, theirs = weights(tmp_path / "by-stage"), weights(tmp_path / "again")
    assert all(torch.equal(ours[name], theirs[name]) for name in ours if name.startswith(("visual", "classifier")))


def test_shards_that_are_added_during_training_do_not_judge_it(digits, tmp_path, monkeypatch):
    shards, choose = tmp_path / "shards", trainer.select_weights
    shutil.copytree(digits.shards, shards)
    (tmp_path / "more").mkdir()
    for number, pixels in enumerate(np.random.default_rng(0).integers(0, 255, (10, 32, 32), np.uint8)):
        Image.fromarray(pixels).save(tmp_path / f"more/{number}.png")

    def after_an_append(*args, **more):
        shard(ShardConfig(source=str(tmp_path / "more"), output=str(shards), append=True, workers=1))
        return choose(*args, **more)

    monkeypatch.setattr(trainer, "select_weights", after_an_append)
    train(replace(training(digits, tmp_path / "out"), shards=str(shards)))
    assert load_index(str(shards)).splits["train"]["samples"] == 160, "they were added"
    assert load_description(str(tmp_path / "out")).provenance["selection"]["images"] == 150


def test_nothing_is_trained_where_nothing_could_be_kept(digits, tmp_path, capsys):
    """Fewer than 50 images: the ladder decides nothing by so few."""
    noise = np.random.default_rng(0).integers(0, 255, (20, 32, 32), np.uint8)
    (tmp_path / "noise").mkdir()
    for number, pixels in enumerate(noise):
        Image.fromarray(pixels).save(tmp_path / f"noise/{number}.png")
    shard(ShardConfig(source=str(tmp_path / "noise"), output=str(tmp_path / "shards"), workers=1))
    config = replace(training(digits, tmp_path / "out", batch_size=10), shards=str(tmp_path / "shards"), preset="")
    for _ in range(2):  # a second run on top of the first
        summary = train(config)
        assert summary["steps"] == 0 and "no step is trained" in capsys.readouterr().out
    kept = load_description(str(tmp_path / "out"))
    assert kept.provenance["selection"]["kept_zero_shot"] and kept.provenance["data"]["agreement"] is None
    zero_shot, ours = weights(digits.zero_shot), weights(tmp_path / "out")
    assert all(torch.equal(ours[name], zero_shot[name]) for name in ours if name.startswith(("visual", "classifier")))
    assert train(replace(config, select="none"))["steps"] == 4, "the place is free for a run that does train"


def test_where_look_alikes_cannot_tell_both_ends_are_kept(digits, tmp_path, capsys):
    """Zero-shot serves, and `must select` (or `must review`) goes on from the other end."""
    out = tmp_path / "out"
    train(training(digits, out))
    story = load_description(str(out)).provenance["selection"]
    left = story["undecided"]
    assert left and 0 < left["differ"] < 1 and left["answers"] > 0 and story["alpha"] < 1
    said = capsys.readouterr().out
    assert f"about {left['answers']} answers about those (must review)" in said and f"{out}/adapted" in said
    adapted = load_bundle(f"{out}/adapted")
    assert "selection" not in adapted.description.provenance
    choice = selected(digits, out / "adapted", tmp_path / "again")
    assert {name: story[name] for name in choice.climb.to_dict()} == choice.climb.to_dict()
    ours, theirs = weights(out), weights(tmp_path / "again")
    assert all(torch.equal(ours[name], theirs[name]) for name in ours if name.startswith(("visual", "classifier")))


@pytest.mark.parametrize(
    "shown, classes, most",
    [(1000, 10, 3500), (200_000, 10, 6667), (10**7, 10, 20_000), (10**7, 2000, 10_000), (10**7, 21_000, 3500)],
)
def test_the_ladder_costs_a_tenth_of_training_where_there_are_many_images(shown, classes, most):
    assert affordable(shown, classes) == most
