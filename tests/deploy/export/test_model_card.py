"""The model card says what was measured and nothing else."""

import json

import pytest

from must.config import EvaluateConfig
from must.deploy.export.model_card import licence, model_card
from must.evaluation.evaluate import evaluate
from must.evaluation.result import read_metrics
from must.method.model.bundle import Description, load_description


def description(**changes):
    values = {
        "architecture": {},
        "backbone": "ViT-B-16",
        "pretrained": "openai",
        "classes": ["<b>bold</b>", "a|b", "c\n# heading"],
        "templates": [],
        "preprocess": {"size": 32},
        "logit_factor": 100.0,
    }
    return Description(**values | changes)


EXPORTED = {
    "arithmetic": "fp32",
    "megabytes": 3.4,
    "checked_on": "train of shards",
    "check": {"images": 40, "agreement": 1.0, "largest_difference": 1e-6},
}


def test_measured_numbers_and_intervals(digits, tmp_path, exported):
    metrics = evaluate(
        EvaluateConfig(
            model=digits.adapted,
            baseline=digits.classifier,
            shards=digits.shards,
            output=str(tmp_path),
            workers=0,
            device="cpu",
        )
    )
    card = model_card(load_description(digits.adapted), EXPORTED, read_metrics(str(tmp_path / "metrics.json")))
    assert f"{metrics.adapted.top1:.1%}" in card and f"{metrics.baseline.top1:.1%}" in card
    assert "120 labelled images" in card and metrics.data.index_sha256 in card
    assert "Not measured" in (exported[1] / "MODEL_CARD.md").read_text()


def test_names_are_text():
    card = model_card(description(), EXPORTED, None)
    assert "<b>" not in card.replace("\\<b\\>", "") and "a\\|b" in card and "\n# heading" not in card
    assert "Not adapted: the zero-shot model" in card


@pytest.mark.parametrize(
    ("tag", "text"),
    [
        ("openai", "MIT"),
        ("laion2b_s34b_b88k", "MIT"),
        ("metaclip_fullcc", "no commercial use"),
        ("webli", "Apache-2.0"),
        ("mine.pt", "not known to us"),
    ],
)
def test_licence_of_the_backbone(tag, text):
    assert text in licence(description(pretrained=tag))


def test_wrong_metrics(tmp_path):
    (tmp_path / "list.json").write_text(json.dumps({"a": 1}))
    for name, text in (
        ("none.json", "no such file"),
        ("list.json", r"is not what `must evaluate` writes \(images is missing"),
    ):
        with pytest.raises(ValueError, match=text):
            read_metrics(str(tmp_path / name))
