"""The gates: decisions on metrics whose answer is known, and that the label-free one sees no labels."""

import functools
import json

import numpy as np
import pytest
import torch

from must.config import GateConfig
from must.evaluation import gate
from must.evaluation.evaluate import evaluate
from must.evaluation.metrics import Samples, measure
from must.evaluation.result import parse_metrics as metrics_from
from must.model.bundle import load_bundle, save_bundle
from must.model.description import load_description
from tests.common import one_line
from tests.evaluation.digits import evaluation
from tests.evaluation.measured import scores_of

CLASSES = list("abcdefghij")
CHECK = {
    "images": 500, "changed": 0.2, "confidence_before": 0.5, "confidence_after": 0.6, "effective_before": 9.5,
    "effective_after": 9.0, "warnings": [],
}  # fmt: skip
FEW_CLASSES = "the model predicts few of the classes: effectively 1.0, zero-shot 5.0"
BAD = CHECK | {"warnings": [FEW_CLASSES]}
FEW = CHECK | {"images": 12}


def labelled_gate(metrics, **limits):
    return gate.labelled_gate(metrics_from(metrics), GateConfig(metrics="", gate="labelled", **limits))


def label_free_gate(metrics, **limits):
    return gate.label_free_gate(metrics_from(metrics), GateConfig(metrics="", **limits))


def parse_metrics(after, labelled=True, images=500, seed=0):
    """`after`: function of (logits of the baseline, labels, generator) -> logits of the adapted model."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, 10, images)
    logits = generator.normal(size=(images, 10))
    logits[np.arange(images), labels] += 2
    shown = labels if labelled else np.full(images, -1)
    adapted, baseline = (scores_of(values, shown) for values in (after(logits.copy(), labels, generator), logits))
    samples = Samples(np.arange(images), shown, np.full(images, "file", dtype=object))
    return measure(samples, adapted, baseline, None, CLASSES).to_dict()


def better(logits, labels, _):
    logits[np.arange(len(labels)), labels] += 2
    return 2 * logits


def noisy(logits, labels, generator):
    return 0.3 * logits + generator.normal(size=logits.shape) * 0.2


def checked(check=CHECK, labelled=True, selection=None, name="zero-shot", after=better):
    metrics = parse_metrics(after, labelled) | {"baseline_name": name}
    metrics["model"] = {"provenance": {"selection": selection} if selection else {}}
    metrics["label_free"]["compared"]["check"] = check
    return metrics


def unchanged(logits, labels, _):
    return logits


@pytest.mark.parametrize(
    ("values", "passes", "outcome", "reason"),
    [
        ({}, True, "passed", ""),
        ({"check": BAD}, False, "stopped", f"{FEW_CLASSES} (500 images)"),
        ({"check": FEW}, False, "stopped", "12 images are too few"),
        ({"check": FEW, "selection": {"alpha": 0.5, "check": CHECK}}, True, "passed", ""),
        ({"check": FEW, "selection": {"alpha": 0.5, "check": BAD}}, False, "stopped", "(500 training images)"),
        ({"check": FEW, "selection": {"check": CHECK}, "name": "baseline"}, False, "stopped", "12 images are too few"),
        ({"check": FEW, "selection": {"alpha": 0.3, "rungs": []}}, False, "stopped", "12 images are too few"),
        ({"after": unchanged}, True, "kept at zero-shot", ""),
        ({"after": unchanged, "name": "baseline"}, False, "stopped", "nothing to promote"),
    ],
)
def test_label_free_gate(values, passes, outcome, reason):
    decision = label_free_gate(checked(**values))
    assert decision.passed == passes and decision.gate == "label-free" and decision.outcome == outcome
    stops = [text for text in decision.reasons if text.startswith("STOP")]
    assert any(reason in text for text in stops) if reason else not stops


def answers(gain, count=60, unmeasured=0):
    """A selection that `count` answers measured; the gain's interval is 0.1 on both sides."""
    measured = {name: [0.7, 0.6, 0.8] for name in ("zero_shot", "model", "refined")}
    measured |= {"answers": count, "gain": [gain, gain - 0.1, gain + 0.1], "unmeasured": unmeasured}
    return {"alpha": 0.5, "check": CHECK, "measured": measured}


@pytest.mark.parametrize(
    ("values", "by", "passes"),
    [
        ({"labelled": True, "selection": answers(-0.3)}, "labelled", True),  # labels first
        ({"labelled": True, "after": noisy, "selection": answers(0.3)}, "labelled", False),
        ({"labelled": False, "selection": answers(0.3)}, "answers", True),
        ({"labelled": False, "selection": answers(0.05)}, "answers", False),
        ({"labelled": False, "selection": answers(0.3, unmeasured=250)}, "answers", True),
        ({"labelled": False, "selection": answers(0.3, unmeasured=251)}, "label-free", True),  # about less than half
        ({"labelled": False, "selection": answers(-0.3, count=9)}, "answers", False),  # few, and they decide
        ({"labelled": False, "selection": answers(0.05, count=49)}, "label-free", True),
        ({"labelled": False, "selection": answers(0.3), "name": "baseline"}, "label-free", True),
        ({"labelled": False, "check": BAD}, "label-free", False),
    ],
)
def test_the_gate_is_the_one_with_the_most_to_go_by(values, by, passes):
    decision = gate.automatic_gate(metrics_from(checked(**values)), GateConfig(metrics=""))
    assert (decision.gate, decision.passed) == (by, passes)
    assert GateConfig(metrics="").gate == "auto" and gate.RULES["auto"] is gate.automatic_gate


def test_labels_below_the_limit_do_not_decide():
    metrics = metrics_from(checked() | {"labelled": 99})
    decision = gate.automatic_gate(metrics, GateConfig(metrics=""))
    assert decision.gate == "label-free" and "without labels" not in decision.reasons[0]
    assert decision.reasons[0].endswith("; 99 labelled images, 100 are needed to say whether it is better")
    assert gate.automatic_gate(metrics, GateConfig(metrics="", min_images=99)).gate == "labelled"


@pytest.mark.parametrize("value", [float("nan"), "much", None, 10**400])
@pytest.mark.parametrize(
    "names", ["label_free compared check effective_after", "adapted top1", "intervals top1 0", "baseline_name"]
)
def test_no_number_is_one_line(tmp_path, value, names):
    """Each number of the metrics, and what they were compared with, as something else."""
    metrics = json.loads(json.dumps(checked()))
    *path, name = names.split()
    functools.reduce(dict.__getitem__, path, metrics)[int(name) if name.isdigit() else name] = value
    (tmp_path / "metrics.json").write_text(json.dumps(metrics))
    with one_line(f"--metrics {tmp_path}/metrics.json: is not what .* evaluate again"):
        gate.gate(GateConfig(metrics=str(tmp_path / "metrics.json")))


def test_the_label_free_gate_reads_no_labels():
    """Whatever the labelled part of the metrics says, the decision is the same; it works without that part."""
    whole = checked()
    without = whole | {"adapted": None, "baseline": None, "intervals": {}, "labelled": 0}
    assert label_free_gate(without) == label_free_gate(whole)
    assert checked(labelled=False)["label_free"] == whole["label_free"]


@pytest.mark.parametrize(
    ("change", "passes"),
    [
        (lambda columns: columns, True),
        (lambda columns: torch.cat([columns[:, :1], -columns[:, :1].repeat(1, 9)], 1), False),
        (lambda columns: columns[:, [0, 1, 2, 8, 4, 5, 6, 7, 3, 9]], True),  # docs/evaluation.md says so
    ],
)
def test_a_collapse_does_not_pass_but_exchanged_names_are_not_seen(digits, tmp_path, change, passes):
    """On real predictions: the tuned model, the same with one class left, and with two classes' names exchanged."""
    bundle = load_bundle(digits.adapted)
    bundle.model.classifier.data = change(bundle.model.classifier.data)
    save_bundle(str(tmp_path / "bundle"), bundle.model, bundle.description)
    config = evaluation(digits, tmp_path / "report", model=str(tmp_path / "bundle"), split="train")
    decision = label_free_gate(evaluate(config).to_dict())
    assert decision.passed is passes and ("predicts few of the classes" in decision.reasons[0]) is not passes


def test_labelled_gate_needs_the_interval_above_the_gain():
    good, worse = parse_metrics(better), parse_metrics(noisy)
    assert labelled_gate(good).passed
    low = good["intervals"]["top1"][0]
    assert labelled_gate(good, min_gain=low - 0.001).passed
    assert not labelled_gate(good, min_gain=low).passed
    assert not labelled_gate(worse).passed
    assert not labelled_gate(parse_metrics(unchanged)).passed, "no change is no gain"


@pytest.mark.parametrize("passed", [True, False])
def test_a_champion_has_the_last_word_and_all_reasons_are_told(passed):
    first, by_champion = gate.decide("labelled", (True, "gained")), gate.decide("labelled", (passed, "compared"))
    found = gate.compare_with_champion(first, by_champion)
    assert (found.passed, found.outcome) == (passed, by_champion.outcome)
    assert found.reasons == ["ok  gained", f"{'ok' if passed else 'STOP'}  compared [against the champion]"]


def test_without_a_gate_every_model_passes():
    found = gate.RULES["none"](parse_metrics(better), GateConfig(metrics="-"))
    assert (found.passed, found.outcome) == (True, "unchecked")


def test_labelled_gate_makes_no_decision_on_few_images():
    few = parse_metrics(better, images=60)
    assert labelled_gate(few).reasons[0].startswith("STOP  labelled images 60") and not labelled_gate(few).passed
    assert labelled_gate(few, min_images=50).passed


@pytest.mark.parametrize(
    "gate, missing, message",
    [
        (labelled_gate, "adapted", "has none"),
        (labelled_gate, "baseline", "needs a baseline"),
        (label_free_gate, "compared", "give `must evaluate` a --baseline"),
        (label_free_gate, "check", "give `must evaluate` a --baseline"),
    ],
)
def test_wrong_questions(gate, missing, message):
    metrics = json.loads(json.dumps(checked()))
    for part in (metrics, metrics["label_free"], metrics["label_free"]["compared"]):
        if missing in part:
            part[missing] = None
            break
    with pytest.raises(ValueError, match=message):
        gate(metrics)


def test_metrics_of_another_model_are_refused_and_a_decision_names_its_own(digits, tmp_path):
    weights = {path: load_description(path).weights_sha256 for path in (digits.adapted, digits.zero_shot)}
    metrics, file = checked(), str(tmp_path / "metrics.json")
    metrics["model"]["weights_sha256"] = weights[digits.adapted]
    (tmp_path / "metrics.json").write_text(json.dumps(metrics))
    decision = gate.gate(GateConfig(metrics=file, model=digits.adapted, output=str(tmp_path / "decision.json")))
    assert gate.read_decision(str(tmp_path / "decision.json")) == decision
    assert decision.weights_sha256 == weights[digits.adapted]
    with pytest.raises(ValueError, match=r"was made of another model .*; run `must evaluate` again"):
        gate.gate(GateConfig(metrics=file, model=digits.zero_shot))
