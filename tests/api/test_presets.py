"""A preset means the same settings wherever training is configured: constructor, file, function and command line."""

import copy
import pickle
from dataclasses import replace

import pytest
import yaml

from must.api import cli
from must.api.stages import configure
from must.base.parameters import load
from must.config import TrainConfig
from must.method.train import trainer


@pytest.fixture
def values(digits):
    return {"shards": digits.shards, "classifier": digits.classifier, "output": "o"}


def on_the_command_line(monkeypatch, values):
    """What `must train` would run with."""
    seen = []
    monkeypatch.setattr(trainer, "train", seen.append)
    cli.main(["train", *(part for name, value in values.items() for part in (f"--{name}", str(value)))])
    return seen[0]


@pytest.mark.parametrize("name, epochs, alpha", [("digits", 40, 1), ("auto", 24, "auto")])
def test_every_way_to_configure_gives_the_same_settings(values, monkeypatch, tmp_path, name, epochs, alpha):
    values["preset"] = name
    file = tmp_path / "train.yaml"
    file.write_text(yaml.safe_dump(values))
    made = TrainConfig(**values)
    assert (made.epochs, made.preset, made.alpha) == (epochs, name, alpha)
    assert made == load(TrainConfig, values) == TrainConfig.load(str(file)) == configure("train", values)
    assert made == on_the_command_line(monkeypatch, values)


def test_what_is_passed_wins_even_where_it_is_the_default(values, monkeypatch):
    values |= {"preset": "digits", "epochs": 30}  # the defaults of both
    made = TrainConfig(**values)
    assert (made.epochs, made.alpha, made.lr) == (30, 1, 0.004)
    assert made == load(TrainConfig, values) == on_the_command_line(monkeypatch, values)


def test_no_preset_is_auto_for_the_stage_and_the_defaults_for_the_class(values):
    assert TrainConfig(**values).epochs == 30
    assert configure("train", values) == TrainConfig(**values, preset="auto")


def test_a_published_preset_takes_the_model_of_the_classifier_file(values):
    with pytest.raises(ValueError, match="--preset imagenet: published for ViT-B/16 and ViT-L/14 only"):
        TrainConfig(**values, preset="imagenet")
    assert TrainConfig(**values, preset="imagenet", model="ViT-L-14", pretrained="openai").mask_patch_size == 56


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"preset": "digitz"}, r"^--preset digitz: unknown; did you mean 'digits'\?$"),
        ({"preset": "auto", "shards": "nowhere"}, r"^nowhere holds no index\.json"),
        ({"preset": "gtsrb", "classifier": "none"}, "^--classifier none: no such file"),
        ({"preset": "digitz", "epochs": 0}, "^--epochs must be at least 1 "),
    ],
)
def test_a_preset_that_cannot_be_resolved_is_refused(values, wrong, message):
    with pytest.raises(ValueError, match=message) as error:
        TrainConfig(**values | wrong)
    assert "\n" not in str(error.value)


def test_copies_keep_the_settings(values):
    made = TrainConfig(**values, preset="digits", lr=0.5)
    changed = replace(made, epochs=2)
    assert changed.epochs == 2 and changed.lr == 0.5 and replace(changed, epochs=40) == made
    assert copy.deepcopy(made) == made == pickle.loads(pickle.dumps(made))
