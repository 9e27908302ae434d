"""The stage on real shards and real models."""

import json
import logging
import os
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from must.answers.accuracy import compare_paired_answers
from must.api.demo import CLASSES
from must.config import GateConfig, RefineConfig, ShardConfig
from must.data.augment import normalize
from must.data.shards.build import shard
from must.evaluation import evaluate as stage
from must.evaluation.evaluate import evaluate
from must.evaluation.gate import gate
from must.evaluation.metrics import score
from must.evaluation.result import make_text_table, parse_metrics
from must.memory.refine import refine
from must.model.bundle import load_bundle, save_bundle
from must.model.description import get_preprocess
from must.model.masked_vit import MaskedViT
from tests.common import one_line, read_csv
from tests.evaluation.digits import decode_pixels, evaluation
from tests.training.processes import on_ranks

MODELS = "baseline", "adapted"  # columns of predictions.csv


def test_accuracy_is_that_of_the_model_on_the_files(digits, evaluated):
    metrics, _ = evaluated
    files = sorted((digits.images / "test").rglob("*.png"))
    labels = np.array([CLASSES.index(path.parent.name) for path in files])
    for name, folder in (("adapted", digits.adapted), ("baseline", digits.zero_shot)):
        bundle = load_bundle(folder)
        pixels = torch.from_numpy(decode_pixels(bundle, [Image.open(path) for path in files]))
        with torch.no_grad():
            logits = bundle.model(normalize(pixels, get_preprocess(bundle.description)))
        assert metrics[name]["top1"] == pytest.approx((logits.argmax(1).numpy() == labels).mean(), abs=1e-12)
        loss = torch.nn.functional.cross_entropy(logits, torch.from_numpy(labels)).item()
        assert metrics[name]["nll"] == pytest.approx(loss, rel=1e-4)
    assert metrics["adapted"]["top1"] > metrics["baseline"]["top1"]


def test_the_numbers_fit_together(evaluated):
    metrics, output = evaluated
    changed, images = metrics["paired"], metrics["labelled"]
    gain = metrics["adapted"]["top1"] - metrics["baseline"]["top1"]
    assert gain == pytest.approx((changed["fixed"] - changed["broken"]) / images)
    right = [[row[model] == row["label"] for row in read_csv(output / "predictions.csv")] for model in MODELS]
    low, high = metrics["intervals"]["top1"]
    assert [gain, low, high] == pytest.approx(compare_paired_answers(*map(np.array, right)), abs=1e-12)
    assert low < gain < high
    matrix = np.array(metrics["confusion"]["matrix"])
    assert np.trace(matrix) / matrix.sum() == pytest.approx(metrics["adapted"]["top1"])
    rows = read_csv(output / "predictions.csv")
    assert len(rows) == 120
    assert sum(row["adapted"] == row["label"] for row in rows) / 120 == pytest.approx(metrics["adapted"]["top1"])


def test_table_is_aligned_and_has_every_class(evaluated):
    lines = make_text_table(parse_metrics(evaluated[0])).splitlines()
    assert all(any(line.startswith(name) for line in lines) for name in CLASSES)
    table = [line for line in lines if not line.startswith(("abstention", "check"))]
    places = {line.index("%") for line in table if "%" in line}
    assert len(places) == 1, "the first column of percentages must be aligned"


def test_without_labels_nothing_is_said_about_accuracy(digits, tmp_path, capsys):
    metrics = evaluate(evaluation(digits, tmp_path, labels="ignore")).to_dict()
    assert metrics["labelled"] == 0 and metrics["adapted"] == {} and not metrics["per_class"]
    assert 0 < metrics["label_free"]["compared"]["agreement"] < 1
    assert sum(metrics["label_free"]["adapted"]["histogram"]) == 120
    page = (tmp_path / "report.html").read_text()
    assert "accuracy is unknown" in page and "Changed: " in page
    shown = capsys.readouterr().out
    assert "no labels" in shown and "stimated change" not in page + shown, "it was wrong where it mattered"
    check = metrics["label_free"]["compared"]["check"]
    assert check["images"] == 120 and check["warnings"] == []
    assert check["changed"] == pytest.approx(1 - metrics["label_free"]["compared"]["agreement"], abs=1e-4)
    assert "check of the model on 120 images" in shown and "abstention" not in shown


def test_without_baseline(digits, tmp_path):
    metrics = evaluate(evaluation(digits, tmp_path, baseline="")).to_dict()
    assert metrics["baseline"] is None and metrics["adapted"]["top1"] > 0.5
    assert "No baseline was given" in (tmp_path / "report.html").read_text()
    unlabelled = evaluate(evaluation(digits, tmp_path, baseline="", labels="ignore")).to_dict()
    assert unlabelled["label_free"]["compared"] is None


def test_a_bundle_as_baseline(digits, tmp_path):
    metrics = evaluate(evaluation(digits, tmp_path, baseline=digits.adapted)).to_dict()
    assert metrics["baseline_name"] == "baseline"
    assert metrics["paired"]["fixed"] == metrics["paired"]["broken"] == 0
    assert metrics["label_free"]["compared"]["agreement"] == 1


def test_wrong_inputs_are_one_clear_line(digits, tmp_path):
    bundle = load_bundle(digits.adapted)
    other = str(tmp_path / "other")
    save_bundle(other, bundle.model, replace(bundle.description, classes=["nought", *CLASSES[1:]]))
    for changes, text in (
        ({"baseline": other}, "has other classes"),
        ({"model": other, "baseline": ""}, "its label 'zero' is none of the 10 classes (nought, one,"),
    ):
        with one_line(re.escape(text)):
            evaluate(evaluation(digits, tmp_path / "out", **changes))
    assert not (tmp_path / "out").exists(), "nothing half-written"


def test_some_images_without_a_label(digits, tmp_path):
    lines = []
    for number, path in enumerate(sorted((digits.images / "test").rglob("*.png"))):
        lines.append(f"{path},{path.parent.name if number % 3 else ''},test\n")
    (tmp_path / "list.csv").write_text("path,label,split\n" + "".join(lines))
    shard(ShardConfig(source=str(tmp_path / "list.csv"), labels="csv", output=str(tmp_path / "shards"), workers=1))
    metrics = evaluate(evaluation(digits, tmp_path / "out", shards=str(tmp_path / "shards"))).to_dict()
    assert (metrics["images"], metrics["labelled"]) == (120, 80)
    assert "40 of the 120 images have no label" in (tmp_path / "out/report.html").read_text()


def evaluate_and_note(config):
    """Writes which ranks computed scores, and whether each returned the metrics."""
    with pytest.MonkeyPatch.context() as patch:
        note = Path(config.output) / f"scored-{os.environ['RANK']}"
        patch.setattr(stage, "score", lambda *values: note.touch() or score(*values))
        assert evaluate(config).labelled == 120


@pytest.mark.slow
def test_two_processes_say_what_one_says_and_one_computes_the_scores(digits, evaluated, tmp_path):
    metrics, _ = evaluated
    on_ranks(2, evaluate_and_note, evaluation(digits, tmp_path, batch_size=50))
    assert [path.name for path in tmp_path.glob("scored-*")] == ["scored-0"]
    both = json.loads((tmp_path / "metrics.json").read_text())
    for name in ("adapted", "baseline"):
        for key in ("top1", "top5", "mean_per_class"):
            assert both[name][key] == metrics[name][key]
        assert both[name]["nll"] == pytest.approx(metrics[name]["nll"], rel=1e-6)
        assert both[name]["ece"] == pytest.approx(metrics[name]["ece"], abs=1e-6)
    for key in ("paired", "images", "labelled", "confusion"):
        assert both[key] == metrics[key]


def with_memory(folder, digits, output, **changes):
    return evaluation(digits, output, **{"model": str(folder.parent / "model"), "refined": str(folder)} | changes)


def test_an_image_whose_answer_is_in_the_model_measures_nothing(digits, refined, tmp_path, caplog):
    with caplog.at_level("INFO"):
        metrics = evaluate(with_memory(refined, digits, tmp_path, split="train"))
    assert (metrics.answered, metrics.labelled) == (70, metrics.images - 70)
    baseline = {"baseline": str(refined.parent / "model"), "model": digits.adapted, "refined": ""}
    assert evaluate(with_memory(refined, digits, tmp_path / "b", split="train", **baseline)).answered == 70
    assert "70 labelled images not measured: people's answers about them are in the model" in caplog.text
    assert "70 labelled, but with an answer: not measured" in (tmp_path / "report.html").read_text()


def test_a_model_with_a_memory_is_measured_as_it_is_used_and_without_it(digits, refined, evaluated, tmp_path):
    metrics = evaluate(with_memory(refined, digits, tmp_path)).to_dict()
    before, _ = evaluated
    for name, former in (("tower", "adapted"), ("baseline", "baseline")):
        numbers = {key: value for key, value in before[former].items() if isinstance(value, float)}
        assert {key: metrics[name][key] for key in numbers} == pytest.approx(numbers, abs=1e-4) and "top1" in numbers
    assert metrics["adapted"] != metrics["tower"] and metrics["adapted"]["top1"] > metrics["baseline"]["top1"]
    assert 0 < metrics["similarity"] < 1 and before["similarity"] is None and before["tower"] is None


@pytest.mark.parametrize("name, passes", [("zero_shot", 1), ("adapted", 2)])
def test_a_network_with_and_without_its_memory_runs_once(digits, refined, tmp_path, monkeypatch, name, passes):
    """The report of a model that was not trained takes one pass."""
    model, images = refined.parent / "model", Counter()
    if name == "zero_shot":
        model, places = tmp_path / "model", {"shards": digits.shards, "classifier": digits.classifier}
        refine(RefineConfig(**places, model=str(model), output=str(tmp_path / "labels"), workers=0, device="cpu"))
    for method in ("classify", "forward"):
        original = getattr(MaskedViT, method)

        def count(self, pixels, *more, method=method, original=original):
            images[method] += len(pixels)
            return original(self, pixels, *more)

        monkeypatch.setattr(MaskedViT, method, count)
    metrics = evaluate(evaluation(digits, tmp_path / "report", model=str(model)))
    assert images == {"classify": 120 * passes}
    assert (metrics.tower.top1 == metrics.baseline.top1) is (name == "zero_shot")


def test_the_metrics_count_the_refined_labels_and_the_gate_says_what_can_be_accepted(digits, refined, tmp_path, caplog):
    summary, rows = json.loads((refined / "refined.json").read_text()), read_csv(refined / "predictions.csv")
    found = evaluate(with_memory(refined, digits, tmp_path, split="train", labels="ignore")).refined
    assert found["images"] == 150 and found["changed"] == sum(row["class"] != row["zero_shot"] for row in rows)
    caplog.set_level(logging.INFO)
    gate(GateConfig(metrics=str(tmp_path / "metrics.json"), gate="none"))
    assert caplog.messages[-1].splitlines()[-1] == f"labels: {summary['accepted']['text']}"


def test_a_folder_that_refine_did_not_write_is_refused(digits, refined, tmp_path):
    with pytest.raises(ValueError, match=r"--refined .*none"):
        evaluate(evaluation(digits, tmp_path / "out", refined=str(tmp_path / "none")))
    (tmp_path / "refined.json").write_bytes((refined / "refined.json").read_bytes())
    with pytest.raises(ValueError, match=r"--refined .*: no predictions.csv there"):
        evaluate(with_memory(refined, digits, tmp_path / "out", refined=str(tmp_path)))
    with pytest.raises(ValueError, match=r"--refined .*: was made of another model .*; run `must refine` again"):
        evaluate(evaluation(digits, tmp_path / "out", refined=str(refined), model=digits.zero_shot))
    for damaged in ("image,class\na,b\n", "image,class,zero_shot\na,b\n"):
        (tmp_path / "predictions.csv").write_text(damaged)
        with pytest.raises(ValueError, match="is not what `must refine` of this version writes"):
            evaluate(with_memory(refined, digits, tmp_path / "out", refined=str(tmp_path)))
    assert not (tmp_path / "out").exists()


def test_a_report_that_cannot_be_drawn_does_not_take_the_numbers_with_it(digits, tmp_path, monkeypatch):
    monkeypatch.setattr("must.evaluation.report.list_classes", lambda metrics: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        evaluate(evaluation(digits, tmp_path))
    assert {file.name for file in tmp_path.iterdir()} == {"metrics.json", "predictions.csv"}
