"""Before training: who is to be beaten, what to start from, whether there is anything new."""

import pytest
import torch

from must.deploy.promote.champion import champion
from must.deploy.promote.registry import Registry
from must.method.model.classifier import TextClassifier, save_classifier
from tests.promote.bundles import make_bundle


@pytest.fixture
def place(tmp_path):
    registry = Registry(str(tmp_path / "registry"), "digits")

    def promote(seed=0, **changes):
        bundle = make_bundle(tmp_path / f"bundle-{seed}", seed=seed, **changes)
        files = [(str(bundle / name), name) for name in ("model.safetensors", "model.json")]
        registry.add(f"v{seed}", {"bundle": files}, {})
        registry.set_champion(f"v{seed}", "promoted")

    registry.promote = promote
    return registry


def ask(place, tmp_path, classes=("cat", "dog"), model="tiny", sha="sha", settings=None, origin=("", ""), **flags):
    file = str(tmp_path / "classifier.safetensors")
    weights = torch.eye(2)
    pretrained, sha256 = origin
    known = TextClassifier(weights, tuple(classes), ("a {}",), model, pretrained, 100.0, model_sha256=sha256)
    save_classifier(known, file)
    return champion(str(tmp_path / "registry"), "digits", sha, file, settings or {"lr": 1.0}, **flags)


def test_an_empty_registry_has_no_champion(place, tmp_path):
    found = ask(place, tmp_path, warm_start=True, only_new=True)
    assert (found.version, found.bundle, found.init, found.action) == ("none", "", "", "train")


def test_a_warm_start_wants_the_same_classes_and_backbone(place, tmp_path):
    place.promote()
    assert ask(place, tmp_path).init == ""
    assert ask(place, tmp_path, warm_start=True).init == place.bundle("v0")
    other = ask(place, tmp_path, warm_start=True, classes=("cat", "fox"))
    assert other.init == "" and "starts from zero-shot: the champion has other classes" in other.reasons
    assert "another backbone (tiny)" in ask(place, tmp_path, warm_start=True, model="big").reasons[1]


@pytest.mark.parametrize(
    "theirs, ours, same",
    [
        (("laion2b", ""), ("laion2b", ""), True),
        (("laion2b", ""), ("datacomp", ""), False),
        (("laion2b", "1" * 64), ("laion2b", ""), True),  # promoted before classifiers kept their model
        (("laion2b", "1" * 64), ("datacomp", ""), False),
        (("laion2b", "1" * 64), ("/models/file.pt", "1" * 64), True),
        (("last.pt", "1" * 64), ("last.pt", "2" * 64), False),
    ],
)
def test_a_warm_start_wants_the_same_pretrained_weights(place, tmp_path, theirs, ours, same):
    place.promote(pretrained=theirs[0], **({"model_sha256": theirs[1]} if theirs[1] else {}))
    found = ask(place, tmp_path, warm_start=True, origin=ours)
    assert (found.init == place.bundle("v0")) is same
    if not same:
        line = f"starts from zero-shot: the champion has other pretrained weights ({theirs[0]})"
        assert found.init == "" and found.reasons[1] == line


@pytest.mark.parametrize("outcome", ["promoted as v0", "stopped"])
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
