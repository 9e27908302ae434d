"""`must train --init`: a run that starts where another one ended; and `--mask-token mean`."""

import dataclasses
import json
import shutil

import pytest
import torch

from must.api.cli import main
from must.base.parameters import load
from must.config import TrainConfig
from must.data.augment.normalize import normalize
from must.data.loading.loader import EvalSource
from must.data.loading.reader import open_reader
from must.method.model.bundle import load_bundle, preprocess_of, save_bundle, zero_shot_bundle
from must.method.model.classifier import load_text_classifier
from must.method.train import warm_start
from must.method.train.trainer import train
from must.method.train.warm_start import start_from, start_mask_token


@pytest.fixture(scope="module")
def champion(digits, tmp_path_factory):
    """A bundle that differs from zero-shot in every tensor."""
    bundle = zero_shot_bundle(load_text_classifier(digits.classifier))
    with torch.no_grad():
        for parameter in bundle.model.parameters():
            parameter.add_(0.01)
    folder = str(tmp_path_factory.mktemp("champion") / "bundle")
    save_bundle(folder, bundle.model, bundle.description)
    return folder


def test_every_tensor_is_the_champions(digits, champion):
    fresh = zero_shot_bundle(load_text_classifier(digits.classifier))
    start_from(champion, fresh)
    expected = load_bundle(champion).model.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in fresh.model.state_dict().items())


def test_training_starts_there_and_the_bundle_says_so(digits, champion, tmp_path):
    values = {"shards": digits.shards, "classifier": digits.classifier, "output": str(tmp_path / "model")}
    settings = {"epochs": 1, "batch_size": 75, "workers": 0, "lr": 0.0, "min_lr": 0.0, "weight_decay": 0.0}
    config = {**values, **settings, "init": champion, "preset": "digits"}
    train(load(TrainConfig, config))
    trained, start = load_bundle(str(tmp_path / "model")), load_bundle(champion)
    for name, value in trained.model.state_dict().items():  # a learning rate of zero leaves everything where it was
        assert torch.allclose(value, start.model.state_dict()[name], atol=1e-6), name
    assert trained.description.provenance["config"]["init"] == champion


def test_the_mask_token_starts_as_the_images_mean_patch(digits, monkeypatch):
    monkeypatch.setattr(warm_start, "LOOKED_AT", 40)
    fresh = zero_shot_bundle(load_text_classifier(digits.classifier))
    preprocess, patches = preprocess_of(fresh.description), []
    reader = open_reader(digits.shards, "train")
    start_mask_token(fresh, EvalSource(reader, preprocess, 16, 0), torch.device("cpu"))
    source = EvalSource(reader, preprocess, 40, 0)
    fresh.model.tower.forward_features(
        normalize(next(iter(source)).pixels, preprocess), lambda seen: patches.append(seen) or seen, None
    )
    torch.testing.assert_close(fresh.model.mask_token[0, 0], patches[0].mean((0, 1)), atol=1e-5, rtol=1e-4)


def test_other_classes_or_no_bundle_are_one_line(digits, champion, tmp_path, capsys):
    other = tmp_path / "other"
    shutil.copytree(champion, other)
    description = json.loads((other / "model.json").read_text())
    description["classes"][0] = "nought"
    (other / "model.json").write_text(json.dumps(description))
    fresh = zero_shot_bundle(load_text_classifier(digits.classifier))
    with pytest.raises(ValueError, match="was trained for other classes"):
        start_from(str(other), fresh)
    changed = dataclasses.replace(fresh, description=dataclasses.replace(fresh.description, architecture={}))
    with pytest.raises(ValueError, match="the classifier file's model is a"):
        start_from(champion, changed)
    renamed = dataclasses.replace(fresh, description=dataclasses.replace(fresh.description, pretrained="datacomp"))
    with pytest.raises(ValueError, match=r"was adapted from other pretrained weights .* or leave --init out"):
        start_from(champion, renamed)
    paths = ["--shards", digits.shards, "--classifier", digits.classifier, "--output", str(tmp_path / "m")]
    with pytest.raises(SystemExit, match="2"):
        main(["train", *paths, "--init", "nowhere"])
    assert "nowhere: no model.json there" in (line := capsys.readouterr().err) and len(line.splitlines()) == 1
