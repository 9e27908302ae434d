"""`must select` and the model that `must train` keeps, on the bundled digits."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from must.method.select.check import agreement_gain
from must.method.select.features import extract_features, subsample
from must.method.select.propagate import nearest, whitened
from must.method.select.select import ALPHAS, DEFAULT_ALPHA, select
from safetensors.torch import load_file

from must.config import EvaluateConfig, SelectConfig
from must.data.loading.loader import EvalSource
from must.evaluation.evaluate import evaluate
from must.method.model.bundle import load_bundle, load_description, preprocess_of, save_bundle
from must.method.model.classifier import load_text_classifier, save_classifier
from must.method.train import trainer
from must.method.train.trainer import train
from tests.method.train import lives


def selected(digits, model, output, **changes):
    values = {"model": str(model), "baseline": digits.classifier, "shards": digits.shards, "output": str(output)}
    return select(SelectConfig(**{**values, "workers": 0, "device": "cpu", **changes})).to_dict()


def weights(folder):
    return load_file(f"{folder}/model.safetensors")


def classifying(folder):
    return {name: value for name, value in weights(folder).items() if name.startswith(("visual.", "classifier"))}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


@pytest.mark.parametrize("alpha, end", [(0.0, "zero_shot"), (1.0, "adapted")])
def test_at_both_ends_the_bits_are_those_of_the_ends(digits, tmp_path, alpha, end):
    selected(digits, digits.adapted, tmp_path, alpha=alpha)
    assert same(classifying(tmp_path), classifying(getattr(digits, end)))
    if end == "adapted":
        assert same(weights(tmp_path), weights(digits.adapted))


def test_between_them_weights_are_interpolated_and_the_bundle_tells_it(digits, tmp_path, capsys):
    selection = selected(digits, digits.adapted, tmp_path, alpha=0.25)
    start, end = weights(digits.zero_shot)["classifier"], weights(digits.adapted)["classifier"]
    assert torch.equal(weights(tmp_path)["classifier"], torch.lerp(start, end, 0.25))
    kept = load_description(str(tmp_path)).provenance.to_dict()
    assert kept["selection"] == selection and kept["index_sha256"] == "0" * 64, "the story so far stays"
    assert (selection["alpha"], selection["by"], selection["check"]["images"]) == (0.25, "--alpha", 150)
    assert selection["check"]["warnings"] == [] and "measured" not in selection
    shown = capsys.readouterr().out
    assert "alpha 0.25 (--alpha)" in shown and "check on 150 unlabeled images" in shown


def test_without_labels_a_part_is_kept_unless_similar_images_agree_clearly_more(digits, tmp_path, capsys):
    """The model was tuned with labels: the further towards it, the better. 150 images do not show it clearly."""
    found = selected(digits, digits.adapted, tmp_path)
    assert found["alpha"] == DEFAULT_ALPHA and "similar images" in found["by"]
    neighbours = torch.arange(400).roll(1)[:, None]
    before, after = torch.arange(400) % 2, torch.arange(400) // 300  # neighbours differ always, and twice
    assert agreement_gain(before, after, neighbours) > 3 and agreement_gain(after, before, neighbours) < -3
    assert agreement_gain(after, after, neighbours) == 0


def test_what_decides_is_the_second_half_of_the_way(digits, tmp_path):
    """The number that "auto" names is that of two models that were made apart: at half of the way and at its end."""
    for alpha in (0.5, 1.0):
        selected(digits, digits.adapted, tmp_path / str(alpha), alpha=alpha)
    half, end = (load_bundle(str(tmp_path / str(alpha))).model for alpha in (0.5, 1.0))
    zero_shot = load_bundle(digits.zero_shot)
    config = SelectConfig(
        model=digits.adapted, baseline=digits.classifier, shards=digits.shards, output=str(tmp_path), workers=0
    )
    source = EvalSource.of(config, preprocess_of(zero_shot.description))
    seen = extract_features(zero_shot.model, source, torch.device("cpu"), lambda images: (half(images), end(images)))
    neighbours, _ = nearest(whitened(seen.features.float()))
    half, end = seen.probabilities[1:].argmax(-1)
    gain = agreement_gain(half, end, neighbours)
    found = selected(digits, digits.adapted, tmp_path / "auto")
    assert abs(gain) > 0.1 and f"changes by {gain:+.1f} standard errors" in found["by"]


def test_all_of_it_is_kept_where_similar_images_agree_clearly_more(digits, tmp_path, monkeypatch):
    monkeypatch.setattr("must.method.select.select.CLEAR", -100.0)
    found = selected(digits, digits.adapted, tmp_path)
    assert found["alpha"] == 1 and "alpha is 1 above -100" in found["by"]
    assert same(weights(tmp_path), weights(digits.adapted))


def test_a_ruined_model_is_kept_as_asked_and_warned_of(digits, tmp_path, capsys):
    bundle = load_bundle(digits.adapted)
    bundle.model.classifier.data[:, 0] = -bundle.model.classifier.data[:, 0]  # nobody is a zero any more
    save_bundle(str(tmp_path / "ruined"), bundle.model, bundle.description)
    check = selected(digits, tmp_path / "ruined", tmp_path / "kept", alpha=1.0)["check"]
    assert check["dead_classes"] == ["zero"] and "warning: 1 classes are no longer predicted" in capsys.readouterr().out


def test_labels_choose_alpha_and_what_they_measure_is_recorded(digits, tmp_path):
    found = selected(digits, digits.adapted, tmp_path / "labelled", labelled="test")
    assert found["by"] == "120 labels of test" and found["alpha"] in ALPHAS
    values = {"model": str(tmp_path / "labelled"), "baseline": digits.classifier, "shards": digits.shards}
    metrics = evaluate(EvaluateConfig(**values, output=str(tmp_path / "report"), workers=0, device="cpu"))
    assert found["measured"]["answers"] == 120
    assert found["measured"]["model"][0] == pytest.approx(metrics.adapted.top1)
    assert found["measured"]["zero_shot"][0] == pytest.approx(metrics.baseline.top1)
    with pytest.raises(ValueError, match="no split 'elsewhere'"):
        selected(digits, digits.adapted, tmp_path / "none", labelled="elsewhere")
    assert not (tmp_path / "none").exists()


def test_a_classifier_of_another_task_is_refused(digits, tmp_path):
    other = load_text_classifier(digits.classifier)
    save_classifier(replace(other, weights=other.weights[:, :9], classes=other.classes[:9]), str(tmp_path / "nine"))
    with pytest.raises(ValueError, match="has other classes"):
        selected(digits, digits.adapted, tmp_path / "kept", baseline=str(tmp_path / "nine"))
    assert not (tmp_path / "kept").exists()


class Source:
    def __init__(self, images, numbers=None):
        self.images, self.numbers = images, list(numbers or range(images))

    def __len__(self):
        return self.images


@pytest.mark.parametrize("images", [1, 1_999, 2_000, 2_001, 6_007])
def test_at_most_2000_images_are_looked_at_evenly_spread(images):
    numbers = subsample(Source(images), 2_000).numbers
    assert len(numbers) == min(images, 2_000) and numbers == sorted(set(numbers))
    steps = np.diff(numbers)
    assert len(steps) == 0 or steps.max() - steps.min() <= 1
    shared = [subsample(Source(images, range(rank, images, 2) or [0]), 2_000).numbers for rank in range(2)]
    assert images < 2 or sorted(shared[0] + shared[1]) == numbers, "processes share the same images"


training = partial(lives.training, epochs=2, batch_size=50, workers=0, seed=1, log_every=2, alpha=0.5)


@pytest.fixture(scope="module")
def trained(digits, tmp_path_factory):
    output = tmp_path_factory.mktemp("trained")
    train(training(digits, output))
    return output


def test_training_keeps_half_and_all_of_it_beside_it(digits, trained, tmp_path):
    selection = load_description(str(trained)).provenance.selection.to_dict()
    assert (selection["alpha"], selection["by"]) == (0.5, "--alpha") and selection["check"]["images"] == 150
    assert load_description(f"{trained}/adapted").provenance.selection is None
    start, half, end = (weights(folder) for folder in (digits.zero_shot, trained, f"{trained}/adapted"))
    assert torch.equal(half["classifier"], torch.lerp(start["classifier"], end["classifier"], 0.5))
    again = selected(digits, trained, tmp_path / "again", alpha=0.5)
    assert again == selection and same(weights(tmp_path / "again"), half), "select goes on from all of it"
    assert (tmp_path / "again/train_log.jsonl").read_bytes() == (trained / "train_log.jsonl").read_bytes()


@pytest.mark.slow
def test_a_run_that_was_killed_before_its_model_was_written_ends_in_the_same(digits, trained, tmp_path, monkeypatch):
    output = tmp_path / "model"

    class Killed(BaseException):
        pass

    def killed(*_args, **_more):
        raise Killed

    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr(trainer, "choose_alpha", killed)
        train(training(digits, output))
    assert not (output / "model.json").exists() and not (output / "adapted").exists()
    train(training(digits, output))
    for name in ("model.safetensors", "adapted/model.safetensors"):
        assert (output / name).read_bytes() == (trained / name).read_bytes()
    ours, theirs = (load_description(str(folder)).provenance.selection.to_dict() for folder in (output, trained))
    assert ours == theirs
    assert train(training(digits, output, alpha=1)).steps and not (output / "adapted").exists()
    assert same(weights(output), weights(trained / "adapted")), "alpha 1 is all of it, and nothing lies beside it"
