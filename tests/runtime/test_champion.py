"""Before training: who is to be beaten, what to start from, whether there is anything new."""

import pytest
import torch

from must.deploy.promote.registry import Registry
from must.method.model.classifier import TextClassifier, save_classifier
from must.runtime.stages import LEFT_TO_PEOPLE, champion
from tests.deploy.promote.bundles import make_bundle


@pytest.fixture
def place(tmp_path):
    registry = Registry(str(tmp_path / "registry"), "digits")

    def promote(seed=0, **changes):
        bundle = make_bundle(tmp_path / f"bundle-{seed}", seed=seed, **changes)
        files = [(str(bundle / name), name) for name in ("model.safetensors", "model.json")]
        registry.add(f"v{seed}", {"bundle": files}, {})
        registry.set_champion(f"v{seed}", "promoted")

    registry.promote = promote  # type: ignore[attr-defined]
    return registry


def ask(place, tmp_path, classes=("cat", "dog"), sha="sha", settings=None, only_new=False):
    file = str(tmp_path / "classifier.safetensors")
    save_classifier(TextClassifier(torch.eye(2), tuple(classes), ("a {}",), "tiny", "", 100.0), file)
    return champion(
        str(tmp_path / "work"), registry_uri=str(tmp_path / "registry"), name="digits", index_sha256=sha,
        classifier=file, preset="", settings=settings or {"lr": 1.0}, epochs=0, only_new=only_new,
    )  # fmt: skip


def test_an_empty_registry_has_no_champion(place, tmp_path):
    found = ask(place, tmp_path, only_new=True)
    assert (found.version, found.bundle, found.action) == ("none", "", "train")


@pytest.mark.parametrize("outcome", ["promoted as v0", LEFT_TO_PEOPLE])
def test_what_was_decided_is_not_trained_again_and_what_failed_is(place, tmp_path, outcome):
    first = ask(place, tmp_path, only_new=True)
    assert ask(place, tmp_path, only_new=True).action == "train"  # the run before failed on its way
    place.decide(first.key, outcome, [])
    assert ask(place, tmp_path, only_new=True).action == "nothing new"
    assert ask(place, tmp_path).action == "train"  # a run by hand


@pytest.mark.parametrize("change", [{"sha": "other"}, {"settings": {"lr": 2.0}}, {"classes": ("cat", "fox")}])
def test_new_data_settings_or_classes_are_new(place, tmp_path, change):
    place.decide(ask(place, tmp_path).key, "stopped", [])
    assert ask(place, tmp_path, only_new=True, **change).action == "train"
