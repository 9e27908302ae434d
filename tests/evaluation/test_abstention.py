"""Thresholds for naming no class: arithmetic on made-up scores, promises over many draws, and a real model's."""

import json
from dataclasses import asdict

import numpy as np
import pytest

from must.answers.abstention import choose_abstention, choose_first_count
from must.answers.accuracy import compute_binomial_tail, compute_upper_bound
from must.config import ExportConfig
from must.evaluation.evaluate import evaluate
from must.exporting.export import export
from must.prediction.onnx_model import OnnxClassifier, choose_threshold
from tests.evaluation.digits import evaluation


def drawn(images, seed, worst=0.5):
    """Confidences, and whether each is right: the error rate falls from `worst` to 0 as the confidence rises."""
    generator = np.random.default_rng(seed)
    confidence = generator.uniform(0.2, 1, images)
    return confidence, generator.uniform(size=images) > worst * (1 - confidence) / 0.8


def true_risk(threshold, worst=0.5):
    """Mean error rate of the confidences from the threshold to 1."""
    return worst * (1 - max(threshold, 0.2)) / 2 / 0.8


def test_the_bound_is_clopper_and_pearsons():
    assert compute_upper_bound(0, 59) == pytest.approx(1 - 0.05 ** (1 / 59))
    assert compute_binomial_tail(3, 50, compute_upper_bound(3, 50)) == pytest.approx(0.05, abs=1e-9)
    assert compute_upper_bound(5, 5) == 1 and 0.0099 < compute_upper_bound(10_000, 1_000_000) < 0.0102


@pytest.mark.slow
def test_with_labels_the_promise_holds():
    """True risk above the target in about 5% of the draws at most; 300 draws leave room for chance."""
    broken = kept = 0
    for seed in range(300):
        found = choose_abstention(0.1, *drawn(800, seed))
        if found.threshold is not None:
            kept += 1
            broken += true_risk(found.threshold) > 0.1
    assert kept > 250 and broken <= 0.08 * 300


def test_with_labels_more_of_them_name_more():
    few = [choose_abstention(0.1, *drawn(400, seed)) for seed in range(20)]
    many = choose_abstention(0.1, *drawn(20_000, 0))
    assert np.mean([found.coverage or 0 for found in few]) < many.coverage and many.by == "labels"
    assert many.risk <= many.bound <= many.target == 0.1
    assert true_risk(many.threshold) == pytest.approx(0.1, abs=0.02)


def test_with_too_few_labels_or_a_bad_model_nothing_is_promised():
    for confidence, correct in (drawn(40, 0), drawn(2000, 0, worst=4)):
        found = choose_abstention(0.05, confidence, correct)
        assert found.threshold is None and found.reason
    assert choose_first_count(10_000, 0.05) == 3 * 59 and choose_first_count(100, 0.05) == 59


def test_without_labels_there_is_no_threshold():
    found = choose_abstention(0.1, np.zeros(0), np.zeros(0, bool))
    assert found.by == "none" and found.threshold is None and "needs labels" in found.reason


def test_the_same_images_get_a_class_on_other_hardware():
    """Kernels and batch sizes change probabilities by up to two millionths; the threshold is half-way between two."""
    generator = np.random.default_rng(0)
    for gap in (1e-5, 1e-3):
        confidence = (0.9 - gap * generator.permutation(200)).astype(np.float32)
        for worst in (0.9 - 200 * gap, 0.9 - 150 * gap):  # all get a class, and three quarters of them
            found = choose_abstention(0.05, confidence, confidence > worst)
            named = confidence >= found.threshold
            assert named.mean() == found.coverage and named.all() == (worst < confidence.min())
            for changed in (confidence - 3e-6, confidence + 3e-6):
                assert np.array_equal(changed >= found.threshold, named)
            assert 0 < confidence[named].min() - found.threshold < 1.1e-4


@pytest.mark.slow
def test_from_evaluation_to_the_onnx_file(digits, tmp_path):
    folder = tmp_path / "evaluated"
    metrics = evaluate(evaluation(digits, folder, risk=0.2))
    found = json.loads((folder / "metrics.json").read_text())["abstention"]
    assert found == asdict(metrics.abstention) and found["by"] == "labels" and 0 < found["threshold"] < 1
    assert found["risk"] <= found["bound"] <= 0.2
    page = (folder / "report.html").read_text()
    assert f"Abstention (predict --abstain -1) below {found['threshold']:.6g}" in page
    export(ExportConfig(model=digits.adapted, output=str(tmp_path / "onnx"), metrics=str(folder / "metrics.json")))
    model = OnnxClassifier(tmp_path / "onnx/model.onnx")
    assert choose_threshold(-1, model, "it") == found["threshold"] and choose_threshold(0.3, model, "it") == 0.3
    assert json.loads(model.metadata["abstention"])["by"] == "labels"
    assert f"{found['threshold']:.6g}" in (tmp_path / "onnx/README.md").read_text()
