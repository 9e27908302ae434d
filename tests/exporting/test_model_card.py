"""The model card and the README.md for a hub say what was measured and nothing else, and names are text in both."""

from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pytest
import yaml
from huggingface_hub import ModelCard
from huggingface_hub.repocard_data import model_index_to_eval_results

from must.answers.accuracy import AccuracyEstimate
from must.base.parameters import make_record
from must.base.text import encode_utf8
from must.evaluation.evaluate import evaluate
from must.evaluation.result import read_metrics
from must.exporting.model_card import make_model_card
from must.model.description import Description, Provenance, load_description
from tests.evaluation.digits import evaluation
from tests.evaluation.measured import MEASURED


def description(**changes):
    values = {"backbone": "ViT-B-16", "pretrained": "openai", "classes": ["<b>bold</b>", "a|b", "c\n# heading"]}
    values |= {"architecture": {}, "templates": [], "preprocess": {"size": 32}, "logit_factor": 100.0}
    return Description(**values | changes)


CHECKED = {"images": 40, "agreement": 1.0, "largest_difference": 1e-6}
EXPORTED = {"arithmetic": "fp32", "megabytes": 3.4, "checked_on": "train of shards", "check": CHECKED}


def test_measured_numbers_and_intervals(digits, tmp_path, exported):
    metrics = evaluate(evaluation(digits, tmp_path))
    card = make_model_card(load_description(digits.adapted), EXPORTED, read_metrics(str(tmp_path / "metrics.json")))
    assert f"{metrics.adapted.top1:.1%}" in card and f"{metrics.baseline.top1:.1%}" in card
    assert "120 labelled images" in card and metrics.data.index_sha256 in card
    assert "Not measured" in (exported[1] / "README.md").read_text()


def hub_card(tmp_path, of, to="open_clip", metrics=None, licence="", **more) -> Any:
    """README.md as the hub reads it."""
    exported = EXPORTED | {"to": to, "largest_logit_difference": 1e-6} | more
    (tmp_path / "README.md").write_bytes(encode_utf8(make_model_card(of, exported, metrics, licence)))
    return ModelCard.load(tmp_path / "README.md")


@pytest.mark.parametrize("to, task", [("open_clip", "zero-shot-image"), ("onnx", "image")])
def test_front_matter(to, task, tmp_path):
    card = hub_card(tmp_path, description(), to)
    assert (card.data.library_name, card.data.pipeline_tag) == (to, f"{task}-classification")
    assert "clip" in card.data.tags and card.data.base_model is None
    assert card.data.license is None and card.data.eval_results is None, "nothing is claimed that nobody said"
    assert "Not measured" in card.text and "## Use" in card.text


def test_licence_and_metrics_are_what_was_given(tmp_path):
    adapted = description(provenance=make_record(Provenance, {"config": {"epochs": 3}}))
    card = hub_card(tmp_path, adapted, metrics=MEASURED, licence="cc-by-4.0")
    assert card.data.license == "cc-by-4.0"
    values = {result.metric_name: result.metric_value for result in card.data.eval_results}
    assert values == {"top-1": 0.9, "mean per class": 0.7}
    assert card.data.eval_results[0].dataset_split == "test" and "90.0%" in card.text
    _, results = model_index_to_eval_results(yaml.safe_load(card.data.to_yaml())["model-index"])
    assert len(results) == 2


def test_without_labels_there_is_no_number(tmp_path):
    card = hub_card(tmp_path, description(), metrics=replace(MEASURED, labelled=0, adapted=None))
    assert card.data.eval_results is None and "Accuracy is unknown" in card.text


@pytest.mark.parametrize(
    ("backbone", "base"),
    [("hf-hub:team/name", "team/name"), ("models/ours", None), ("hf-hub:team/name\nlicense: mit", None)],
)
def test_base_model_where_it_is_one_of_the_hub(backbone, base, tmp_path):
    assert hub_card(tmp_path, description(backbone=backbone)).data.base_model == base


@pytest.mark.parametrize(
    "name", ["a\n---\nlicense: gpl", "'quoted\"", "{x: 1}", "# heading", "caf\udce9", "\x1b]0;pwned\x07", "<script>"]
)
def test_a_name_is_text_wherever_it_stands(name, tmp_path):
    metrics = replace(MEASURED, data=replace(MEASURED.data, split=name))
    made = Provenance(git_revision=name)
    changed = description(classes=[name, "other"], backbone=name, pretrained=name, provenance=made)
    card = hub_card(tmp_path, changed, metrics=metrics, checked_on=name)
    assert set(card.data.to_dict()) == {"library_name", "pipeline_tag", "tags", "model-index"}
    front = yaml.safe_load(card.content.split("\n---\n")[0].removeprefix("---\n"))
    assert front["model-index"][0]["results"][0]["dataset"]["split"] == name
    assert "<script>" not in card.text and "\n# heading" not in card.text and "\n---" not in card.text
    assert "\x1b" not in card.content and "\x07" not in card.content


def test_the_card_of_a_zero_shot_model():
    card = make_model_card(description(), EXPORTED, None)
    assert "\\<b\\>bold" in card and "a\\|b, c \\# heading" in card
    assert "derive from ViT-B-16 openai: read the licence" in card


TRAINED = {"config": {"epochs": 3}, "selection": {"alpha": 0.35}}


@pytest.mark.parametrize(
    "provenance, to, sentence",
    [
        ({}, "onnx", "CLIP's zero-shot classifier. No labels were used."),
        ({"memory": {"images": 1200}}, "onnx",
         "CLIP's zero-shot classifier, with a memory of 1,200 unlabeled images. No labels were used."),
        (TRAINED | {"memory": {"images": 1200, "answers": 1}}, "onnx",
         r"(MUST, arXiv 2206.02967), of which a share of 0.35 is kept, with a memory of 1,200 unlabeled images. "
         "People named the classes of 1 image."),
        (TRAINED | {"memory": {"images": 1200}}, "open_clip",
         "(MUST, arXiv 2206.02967), of which a share of 0.35 is kept. No labels were used."),
        (TRAINED | {"selection": {"alpha": 0.0}, "memory": {"images": 1200, "answers": 50}},
         "open_clip", "CLIP's zero-shot classifier. No labels were used."),
    ],
)  # fmt: skip
def test_the_card_says_how_the_model_was_made(provenance, to, sentence):
    made = description(provenance=make_record(Provenance, provenance))
    card = make_model_card(made, EXPORTED | {"to": to, "largest_logit_difference": 1e-6}, None)
    assert sentence in card


def test_answers_measure_where_no_image_has_a_label_and_no_path_of_the_owner_is_told():
    """The card said that people named 291 images, and below that accuracy is unknown."""
    estimate = AccuracyEstimate.from_correct(np.arange(60) < 30, np.arange(60) < 40, with_answers=np.arange(60) < 45)
    made = {"memory": {"images": 99, "answers": 60}, "selection": {"alpha": 0.0, "measured": asdict(estimate)}}
    of = description(backbone="/home/ann/models/ours", provenance=make_record(Provenance, made))
    unlabeled = replace(MEASURED, labelled=0, adapted=None)
    card = make_model_card(of, EXPORTED | {"checked_on": "train of /home/ann/shards"}, unlabeled)
    assert "By 60 answers of people about images drawn at random: 75.0% are right" in card
    assert "unknown" not in card and "/home" not in card and "# ours, adapted to 3 classes" in card
    tower = make_model_card(of, EXPORTED | {"to": "open_clip"}, unlabeled)
    assert "Accuracy is unknown" in tower and "75.0%" not in tower, "it has no memory, which the answers measured"
