"""Before training: who is to be beaten, what to start from, whether there is anything new."""

import hashlib
from contextlib import nullcontext

import pytest
import torch

from must.base.storage import write_bytes
from must.data.format import Index, Shard
from must.model.classifier import TextClassifier, save_classifier
from must.pods.notes import Facts
from must.pods.stages import champion
from must.registry.promote import Registry
from tests.registry.bundles import make_bundle, promote

SPLITS = {"train": {"samples": 9, "labelled": 0}, "test": {"samples": 3, "labelled": 3}}
LABELLED = SPLITS | {"test": {"samples": 100, "labelled": 100}}
UNLABELLED = {"train": {"samples": 9, "labelled": 0}}


@pytest.fixture
def place(tmp_path):
    return Registry(str(tmp_path / "registry"), "digits")


def make_index(splits):
    shards = tuple(
        Shard(f"{split}-000000.tar", split, counts["samples"], 1, "0" * 64, "0" * 64, counts["labelled"])
        for split, counts in splits.items()
    )
    source, settings = {"uri": "", "fingerprint": ""}, {"max_pixels": 9}
    return Index(0, "test", source, settings, shards, splits, (), 0, {}, 0, 0)


def ask(tmp_path, classes=("cat", "dog"), settings=None, only_new=False, splits=SPLITS, gate="label-free", **more):
    file = str(tmp_path / "classifier.safetensors")
    save_classifier(TextClassifier(tuple(classes), ("a {}",), "tiny", "", 100.0, weights=torch.eye(2)), file)
    content = make_index(splits).to_json()
    write_bytes(str(tmp_path / "work" / "shards" / "index.json"), content)
    return champion(
        more.pop("facts", Facts()), str(tmp_path / "work"), model_name="digits",
        registry_uri=str(tmp_path / "registry"), index_sha256=hashlib.sha256(content).hexdigest(),
        classifier=file, preset="", settings=settings or {"lr": 1.0}, epochs=0, only_new=only_new, gate=gate, **more,
    )  # fmt: skip


def test_an_empty_registry_has_no_champion(tmp_path):
    found = ask(tmp_path, only_new=True)
    assert (found["version"], found["bundle_uri"], found["action"]) == ("none", "", "train")


def test_what_was_decided_is_not_trained_again_and_what_failed_is(place, tmp_path):
    first = ask(tmp_path, only_new=True)
    assert ask(tmp_path, only_new=True)["action"] == "train"  # the run before failed on its way
    place.decide(first["key"], "promoted as v0", [])
    assert ask(tmp_path, only_new=True)["action"] == "nothing new"
    assert ask(tmp_path)["action"] == "train"  # a run by hand


@pytest.mark.parametrize(
    "change",
    [
        {"splits": {"train": {"samples": 9, "labelled": 9}}},
        {"settings": {"lr": 2.0}},
        {"classes": ("cat", "fox")},
        {"gate": "none"},
        {"gate_settings": {"min_gain": 0.1}},
        {"evaluate_split": "train", "splits": SPLITS | {"train": SPLITS["test"]}},
    ],
)
def test_new_data_settings_or_classes_are_new(place, tmp_path, change):
    place.decide(ask(tmp_path)["key"], "stopped", [])
    assert ask(tmp_path, only_new=True, **change)["action"] == "train"


def test_new_answers_are_new(place, tmp_path):
    (file := tmp_path / "answers.jsonl").write_text("{}")
    place.decide(ask(tmp_path, answers=str(file))["key"], "stopped", [])
    assert ask(tmp_path, only_new=True, answers=str(file))["action"] == "nothing new"
    file.write_text("{}\n{}")
    assert ask(tmp_path, only_new=True, answers=str(file))["action"] == "train"


@pytest.mark.parametrize(
    "splits, given, gate, split",
    [
        (LABELLED, "", "labelled", "test"),
        (SPLITS, "train", "auto", "train"),
        (UNLABELLED, "", "auto", "train"),
        (UNLABELLED, "test", "auto", "no split 'test'"),
        (UNLABELLED, "", "labelled", "the split train has 0 labelled images, min_images is 100; give test_source"),
    ],
)
def test_the_split_to_evaluate_on_is_known_before_the_training(tmp_path, splits, given, gate, split):
    with nullcontext() if split in splits else pytest.raises(ValueError, match=split):
        assert ask(tmp_path, splits=splits, evaluate_split=given, gate=gate)["split"] == split


def test_a_champion_with_other_classes_is_not_compared(place, tmp_path):
    promote(tmp_path / "registry", "--model", make_bundle(tmp_path / "bundle"), "--version", "v0")
    found = ask(tmp_path)
    assert (found["version"], found["bundle_uri"]) == ("v0", place.bundle("v0"))
    found = ask(tmp_path, classes=("cat", "dog", "fox"), facts=(facts := Facts()))
    assert (found["version"], found["bundle_uri"]) == ("v0", "")
    assert "it has other classes, so the model is compared with zero-shot only" in facts.result
