"""A preset means the same settings wherever training is configured: constructor, file, function and command line."""

from dataclasses import replace

import pytest
import yaml

from must.api import cli
from must.api.stages import configure
from must.base.parameters import load
from must.config import TrainConfig
from must.data.format.index import load_index
from must.method.model.classifier import load_text_classifier
from must.method.train import recipe, trainer


@pytest.fixture
def values(digits):
    return {"shards": digits.shards, "classifier": digits.classifier, "output": "o"}


def resolved(config):
    return recipe.resolve(config, load_index(config.shards), load_text_classifier(config.classifier))


def on_the_command_line(monkeypatch, values):
    """What `must train` would run with."""
    configs = []
    monkeypatch.setattr(trainer, "train", configs.append)
    cli.main(["train", *(part for name, value in values.items() for part in (f"--{name}", str(value)))])
    return configs[0]


@pytest.mark.parametrize("name, epochs, alpha", [("digits", 40, 1), ("auto", 24, 0.35)])
def test_every_way_to_configure_gives_the_same_settings(values, monkeypatch, tmp_path, name, epochs, alpha):
    values["preset"] = name
    (file := tmp_path / "train.yaml").write_text(yaml.safe_dump(values))
    made = TrainConfig(**values)
    found = resolved(made)
    assert (found.config.epochs, found.config.preset, found.config.alpha) == (epochs, name, alpha)
    assert set(found.reasons) >= {"epochs", "lr", "alpha"} and all(found.reasons.values())
    assert resolved(found.config).config == found.config, "resolving twice changes nothing"
    ways = [load(TrainConfig, values), load(TrainConfig, {}, str(file)), configure("train", values)]
    for other in [*ways, on_the_command_line(monkeypatch, values)]:
        assert other == made and resolved(other) == found


def test_what_is_passed_wins_even_where_it_is_the_default(values, monkeypatch):
    values |= {"preset": "digits", "epochs": 30}  # the defaults of both
    found = resolved(load(TrainConfig, values))
    assert (found.config.epochs, found.config.alpha, found.config.lr) == (30, 1, 0.004)
    assert "epochs" not in found.reasons
    assert found == resolved(on_the_command_line(monkeypatch, values))
    assert resolved(TrainConfig(**values, passed=frozenset(["epochs"]))) == found, "without `load` the caller names it"
    assert resolved(replace(load(TrainConfig, values), seed=1)).config == replace(found.config, seed=1)
