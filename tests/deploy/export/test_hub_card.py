"""README.md of an exported folder: what a hub reads of it, and names that are no Markdown and no YAML."""

from dataclasses import replace
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard
from huggingface_hub.repocard_data import model_index_to_eval_results

from must.base.text import encoded
from must.deploy.export.model_card import hub_card
from must.method.model.provenance import Provenance
from tests.deploy.export.test_model_card import EXPORTED, description
from tests.evaluation.measured import MEASURED

HOSTILE = [
    "a\n---\nlicense: gpl",
    "'quoted\"",
    "{x: 1}",
    "# heading",
    "caf\udce9",
    "\x1b]0;pwned\x07",
    "<script>",
    "a: b",
]


def taken(to: str) -> dict:
    return EXPORTED | {"to": to, "largest_logit_difference": 1e-6}


def read(text: str, tmp_path) -> Any:
    (tmp_path / "README.md").write_bytes(encoded(text))
    return ModelCard.load(tmp_path / "README.md")


@pytest.mark.parametrize(
    ("to", "task"),
    [
        ("open_clip", "zero-shot-image-classification"),
        ("transformers", "zero-shot-image-classification"),
        ("onnx", "image-classification"),
    ],
)
def test_front_matter(to, task, tmp_path):
    card = read(hub_card(description(), taken(to), None, "" if to == "onnx" else "`use`", ""), tmp_path)
    assert (card.data.library_name, card.data.pipeline_tag) == (to, task)
    assert "clip" in card.data.tags and card.data.base_model == "timm/vit_base_patch16_clip_224.openai"
    assert card.data.license is None and card.data.eval_results is None, "nothing is claimed that nobody said"
    assert "Not measured" in card.text and "## Use" in card.text and "base_model_relation" not in card.data.to_dict()


def test_licence_and_metrics_are_what_was_given(tmp_path):
    story = {"config": {"epochs": 3}}
    adapted = description(provenance=Provenance.of_dict(story))
    card = read(hub_card(adapted, taken("open_clip"), MEASURED, "`use`", "cc-by-4.0"), tmp_path)
    assert card.data.license == "cc-by-4.0" and card.data.to_dict()["base_model_relation"] == "finetune"
    values = {result.metric_name: result.metric_value for result in card.data.eval_results}
    assert values == {"top-1": 0.9, "mean per class": 0.7}
    assert card.data.eval_results[0].dataset_split == "test" and "90.0%" in card.text
    _, results = model_index_to_eval_results(yaml.safe_load(card.data.to_yaml())["model-index"])
    assert len(results) == 2


def test_without_labels_there_is_no_number(tmp_path):
    metrics = replace(MEASURED, labelled=0, adapted=None)
    card = read(hub_card(description(), taken("open_clip"), metrics, "`use`", ""), tmp_path)
    assert card.data.eval_results is None and "Accuracy is unknown" in card.text


@pytest.mark.parametrize(
    ("backbone", "pretrained", "base"),
    [
        ("hf-hub:team/name", "", "team/name"),
        ("ViT-B/32", "laion2b_s34b_b79k", "laion/CLIP-ViT-B-32-laion2B-s34B-b79K"),
        ("ViT-B-16", "mine.pt", None),
        ("models/ours", "", None),  # a folder, which looks like a name on a hub
        ("hf-hub:team/name\nlicense: mit", "", None),
    ],
)
def test_base_model_where_it_is_known(backbone, pretrained, base, tmp_path):
    changed = description(backbone=backbone, pretrained=pretrained)
    assert read(hub_card(changed, taken("open_clip"), None, "`use`", ""), tmp_path).data.base_model == base


@pytest.mark.parametrize("name", HOSTILE)
def test_a_name_is_text_wherever_it_stands(name, tmp_path):
    metrics = replace(MEASURED, data=replace(MEASURED.data, split=name))
    made = Provenance(git_revision=name)
    changed = description(classes=[name, "other"], backbone=name, pretrained=name, provenance=made)
    exported = taken("open_clip") | {"checked_on": name}
    text = hub_card(changed, exported, metrics, "`use`", "")
    card = read(text, tmp_path)
    assert set(card.data.to_dict()) == {"library_name", "pipeline_tag", "tags", "model-index"}
    front = yaml.safe_load(text.split("\n---\n")[0].removeprefix("---\n"))
    assert front["model-index"][0]["results"][0]["dataset"]["split"] == name
    assert "<script>" not in card.text and "\n# heading" not in card.text and "\n---" not in card.text
    assert "\x1b" not in card.content and "\x07" not in card.content
