"""How often a network runs: the report of a model that was not trained takes one pass."""

import json
import shutil
from collections import Counter

import pytest

from must.config import RefineConfig
from must.evaluation.evaluate import evaluate
from must.method.memory.refine import refine
from must.method.model.masked_vit import MaskedViT
from tests.evaluation.digits import evaluation


@pytest.mark.parametrize("name, passes", [("zero_shot", {"classify": 1}), ("adapted", {"classify": 1, "forward": 1})])
def test_a_network_with_and_without_its_memory_runs_once(digits, tmp_path, monkeypatch, name, passes):
    config = {"shards": digits.shards, "classifier": digits.classifier, "workers": 0, "device": "cpu"}
    model = tmp_path / "model"
    if name == "adapted":
        shutil.copytree(digits.adapted, model)
    refine(RefineConfig(**config, model=str(model), output=str(tmp_path / "labels")))
    images = Counter()

    def count(method):
        original = getattr(MaskedViT, method)

        def counting(self, pixels, *more):
            images[method] += len(pixels)
            return original(self, pixels, *more)

        monkeypatch.setattr(MaskedViT, method, counting)

    count("classify"), count("forward")
    evaluate(evaluation(digits, tmp_path / "report", model=str(model)))
    mapped = 120  # images of the map, whose vectors are computed besides
    assert images == {method: 120 * times + (mapped if method == "classify" else 0) for method, times in passes.items()}
    metrics = json.loads((tmp_path / "report" / "metrics.json").read_text())
    if name == "zero_shot":
        assert metrics["tower"]["top1"] == metrics["baseline"]["top1"]
