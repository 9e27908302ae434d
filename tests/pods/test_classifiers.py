"""A classifier that an earlier run made is used again if it is whole; and what an artifact may tell of itself."""

from dataclasses import replace

import pytest
import torch

from must.base import storage
from must.config import ClassifierConfig
from must.config.work import CLASSIFIER_FILE, MODEL_FOLDER_FILE
from must.model.classifier import TextClassifier, read_header, save_classifier
from must.model.hub import OPEN_CLIP_WEIGHTS
from must.pods import stages
from must.pods.notes import Facts
from must.pods.stages import list_figures
from must.pods.training import keep_plain
from tests.evaluation.measured import MEASURED


@pytest.fixture
def made(monkeypatch, tmp_path):
    """The content of each classifier that was computed; computing is not what is tested here."""
    contents = []

    def run(stage, output, model_store, **values):
        ClassifierConfig(output=output, model_store=model_store, **values)
        model = {"model": "ViT-B-16", "pretrained": "openai", "model_folder": f"{model_store}/ViT-B-16"}
        weights = torch.full((4, 2), 0.5 + len(contents))
        classes = TextClassifier(classes=("cat", "dog"), templates=("{}",), logit_scale=100.0, **model, weights=weights)
        save_classifier(classes, output)
        contents.append(storage.read_bytes(output))
        for file in (MODEL_FOLDER_FILE, OPEN_CLIP_WEIGHTS):
            storage.write_bytes(f"{model_store}/ViT-B-16/{file}", b"x")

    monkeypatch.setattr(stages, "run", run)
    return contents


def ask(work, output, key="k"):
    made_of = {"classes": "classes.yaml", "model": "ViT-B-16", "pretrained": "openai"}
    facts = Facts()
    record = stages.classifier(facts, str(work), **made_of, fingerprint=key, weights=str(output))
    return record, facts.result == "2 classes, made by an earlier run"


@pytest.mark.parametrize("place", ["folder", "bucket"])
def test_what_an_earlier_run_made_is_used_again(made, tmp_path, bucket_server, place):
    work = tmp_path / "work" if place == "folder" else bucket_server.uri
    first, _ = ask(work, tmp_path / "a")
    assert first["weights"]["display_name"] == "zero-shot classifier, 2 classes"
    assert read_header(str(tmp_path / "a")).model_folder == f"{work}/models/ViT-B-16"
    assert ask(work, tmp_path / "b") == (first, True) and (tmp_path / "b").read_bytes() == made[0]
    assert not ask(work, tmp_path / "c", key="other classes")[1] and len(made) == 2


KEPT = f"classifiers/k/{CLASSIFIER_FILE}"
MODEL = [f"models/ViT-B-16/{name}" for name in (MODEL_FOLDER_FILE, OPEN_CLIP_WEIGHTS)]


@pytest.mark.parametrize(
    "file, damage",
    [*((KEPT, damage) for damage in ("gone", "cut short", "empty")), *((file, "gone") for file in MODEL)],
)
def test_what_is_gone_or_damaged_is_made_again(made, tmp_path, file, damage):
    ask(tmp_path, tmp_path / "a")
    kept = tmp_path / file
    if damage == "gone":
        kept.unlink()
    else:
        kept.write_bytes(kept.read_bytes()[:-3] if damage == "cut short" else b"")
    assert not ask(tmp_path, tmp_path / "b")[1] and (tmp_path / "b").read_bytes() == made[1]
    assert ask(tmp_path, tmp_path / "c")[1] and (tmp_path / "c").read_bytes() == made[1]


def test_metadata_has_nothing_that_kubeflow_refuses():
    """Its converter fails a stage after its work for null, and JSON has no NaN."""
    facts = {"a": None, "b": float("nan"), "c": float("inf"), "d": 0, "e": "", "f": 0.5, "g": False}
    assert keep_plain(facts) == {"d": 0, "e": "", "f": 0.5, "g": False}
    assert list_figures(replace(MEASURED, baseline=None))["accuracy"] == 0.9
