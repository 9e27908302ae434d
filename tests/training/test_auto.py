"""`--preset auto`: settings from the data's size and the model's shape, and the default of `must train`."""

import math
from dataclasses import replace
from typing import Any

import pytest

from must.api.run import configure
from must.base.parameters import load
from must.config import TrainConfig
from must.data.format import load_index
from must.model.classifier import load_text_classifier, save_classifier
from must.training.recipe import BATCHES, EPOCHS, choose_auto_settings, find_published, resolve

TOWERS = {"tiny": (128, 32, 4), "wide": (512, 32, 4), "ViT-B/16": (768, 224, 16), "ViT-L/14": (1024, 224, 14)}
REQUIRED = dict.fromkeys(("shards", "classifier", "output"), "x")


def chosen(*shape):
    return {name: value for name, (value, reason) in choose_auto_settings(*shape).items() if reason}


def test_the_help_marks_what_presets_choose():
    rows = [find_published("imagenet", "ViT-B-16"), find_published("digits", "tiny")]
    auto = chosen(300, 10, *TOWERS["tiny"]).keys() | {"class_prior"}
    assert auto | rows[0].keys() | rows[1].keys() == TrainConfig.by_preset.keys() | {"workers"}
    constants = {name: text for name, text in TrainConfig.by_preset.items() if text}
    for tower, shape in TOWERS.items():
        values = chosen(300, 10, *shape) | REQUIRED
        assert load(TrainConfig, values | constants) == load(TrainConfig, values), tower


@pytest.mark.parametrize("images", [1, 20, 300, 1097, 1_000_000])
@pytest.mark.parametrize("tower", TOWERS)
@pytest.mark.parametrize("classes", [2, 10, 1000])
def test_settings_can_be_trained_with(images, tower, classes):
    result = chosen(images, classes, *TOWERS[tower])
    config = load(TrainConfig, REQUIRED | result)
    assert 1 <= config.batch_size <= min(images, BATCHES[1]) and EPOCHS[0] <= config.epochs <= EPOCHS[1]
    assert config.batch_size == images or math.log2(config.batch_size).is_integer()
    assert 0 < config.min_lr < config.lr
    assert 0.9 <= config.ema_decay_init <= config.ema_decay <= 0.9998
    steps = images // config.batch_size * config.epochs
    assert steps >= config.epochs and config.ema_warmup_steps <= max(1, 0.15 * steps + 1)
    _, size, patch = TOWERS[tower]
    assert size % config.mask_patch_size == 0 and config.mask_patch_size % patch == 0
    assert config.alpha == 0.35 and config.flip == 0
    assert result == chosen(images, classes, *TOWERS[tower]), "a pure function"


@pytest.mark.parametrize(
    "images, classes, tower, batch, epochs, lr",
    [
        (1, 10, "tiny", 1, 24, 0.000125),
        (20, 10, "tiny", 16, 24, 0.0005),
        (300, 10, "tiny", 16, 24, 0.0005),
        (600, 10, "tiny", 32, 24, 0.000707),
        (600, 200, "tiny", 256, 24, 0.000447),  # the class balance is a batch's
        (1097, 10, "tiny", 64, 24, 0.001),
        (4000, 10, "tiny", 256, 12, 0.002),
        (4000, 10, "wide", 256, 24, 9.69e-5),  # steps grow with the width, learning rates fall
        (1_000_000, 10, "tiny", 256, 10, 0.002),
        (1, 10, "ViT-B/16", 1, 24, 2.5e-6),
        (1097, 10, "ViT-B/16", 64, 24, 2e-5),
        (1_000_000, 10, "ViT-B/16", 256, 10, 4e-5),
        (1_000_000, 10, "ViT-L/14", 256, 10, 8e-5),
    ],
)
def test_what_they_are(images, classes, tower, batch, epochs, lr):
    """`lr` is that of a step of this batch; the parameter is for 256 images."""
    found = chosen(images, classes, *TOWERS[tower])
    assert (found["batch_size"], found["epochs"]) == (batch, epochs)
    assert found["lr"] * batch / 256 == pytest.approx(lr, rel=0.01)
    memory = min(max(0.25 * (images // batch) * epochs, 10), 5_000)  # of the teacher, in steps
    assert 1 / (1 - found["ema_decay"]) == pytest.approx(memory, rel=0.05)


def test_learning_rates_are_published_for_large_towers_and_interpolated_for_narrower_ones():
    rates = {width: chosen(1097, 10, width, 224, 16)["lr"] for width in (128, 192, 384, 768, 1024, 1408)}
    assert rates[128] > rates[192] > rates[384] > rates[768] == pytest.approx(0.02 * rates[128], rel=0.01)
    assert rates[1024] == rates[1408] == pytest.approx(2 * rates[768])
    for data_set in ("imagenet", "sun397", "food101", "gtsrb", "dtd", "ucf101"):
        base, large = (float(find_published(data_set, model)["lr"]) for model in ("ViT-B-16", "ViT-L-14"))
        assert large == 2 * base


def resolved(digits, **changes):
    places = {"shards": digits.shards, "classifier": digits.classifier, "output": "o"}
    config: Any = configure("train", places | changes)
    return resolve(config, load_index(config.shards), load_text_classifier(config.classifier)).config


def test_a_threshold_that_is_given_is_used(digits):
    config = resolved(digits, confidence_threshold="0.7")
    assert (config.confidence_threshold, config.confident_share) == (0.7, 0)
    assert resolved(digits, confidence_threshold=0.5, confident_share=0.3).confident_share == 0.3


def test_shares_that_the_classifier_file_holds_are_taken(digits, tmp_path):
    file = str(tmp_path / "c.safetensors")
    save_classifier(replace(load_text_classifier(digits.classifier), shares=(0.1,) * 10), file)
    assert resolved(digits).class_prior == "uniform"
    assert resolved(digits, classifier=file).class_prior == "given"
    assert resolved(digits, classifier=file, class_prior="uniform").class_prior == "uniform"
    assert resolved(digits, classifier=file, preset="digits").class_prior == "uniform"


def test_published_settings_are_what_they_were(digits):
    """A preset's name gives its row and the published defaults, nothing of auto."""
    places = {"shards": digits.shards, "classifier": digits.classifier, "output": "o", "preset": "imagenet"}
    classifier = replace(load_text_classifier(digits.classifier), model="ViT-B-16")
    config: Any = resolve(configure("train", places), load_index(digits.shards), classifier).config
    assert config == TrainConfig(**{**find_published("imagenet", "ViT-B-16"), **places})
    assert (config.epochs, config.batch_size, config.lr, config.min_lr) == (30, 1024, 2e-5, 1e-6)
    assert (config.ema_decay_init, config.ema_decay, config.ema_warmup_steps) == (0.999, 0.9998, 2000)
    assert (config.mask_patch_size, config.mask_ratio, config.confidence_threshold) == (32, 0.3, 0.7)
    assert (config.fairness_weight, config.align_weight, config.flip, config.alpha) == (1, 0.2, 0.5, 1.0)
    assert (config.randaugment, config.logit_factor) == ("rand-m9-mstd0.5-inc1", "100")
    assert (config.mask_token, config.loss_reduction, config.confident_share) == ("random", "global", 0)
