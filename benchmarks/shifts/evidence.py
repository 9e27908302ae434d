"""What a run of the shift suite shows, from the looks that `run` kept: nothing is trained, every choice is made again.

The choice sees the unlabeled images; changes of accuracy are measured on test images that it never saw, weighted so
that classes are as frequent as among the unlabeled images.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.shifts.refined import refined_top1
from benchmarks.shifts.run import top1
from must.evaluation.labelfree import estimated_change
from must.evaluation.scores import Scores
from must.method.model.bundle import load_description
from must.method.select.alpha import choose_alpha, shares_of, signals
from must.method.select.ladder import RUNGS, agreement
from must.method.select.neighbours import look_alikes
from must.method.select.rung_predictions import RungPredictions

REPLICATES = 1000
CONFIDENT = 0.7
SIGNALS = (
    "nmi - 2 renamed", "nmi", "kappa of look-alikes", "agreement", "agreement where confident", "estimated change",
    "effective classes", "confidence",
)  # fmt: skip

Kept = dict[str, np.ndarray]


def kept_looks(folder: Path) -> list[Kept]:
    """Of the run's snapshots, the last one last."""
    found = []
    for path in sorted(folder.glob("looks-*.npz")):
        with np.load(path) as file:
            found.append({name: file[name] for name in file.files})
    return found


def evidence(folder: Path) -> dict[str, Any]:
    """One row: what the full adaptation, the ladder and the gate came to. Points of top-1."""
    task, variant, setting, images, seed = folder.name.split(".")
    snapshots = kept_looks(folder)
    last = snapshots[-1]
    shares = shares_of(load_description(str(folder)))
    choice = choose_alpha(on_unlabeled(last), shares=shares)
    accuracy = [top1(said, last["test_truth"], last["counts"]) for said in last["test"]]
    rung = (0.0, *RUNGS).index(choice.climb.alpha)
    change = accuracy[rung] - accuracy[0]
    low, high = interval(last, rung)
    return {
        "task": task, "variant": variant, "setting": setting, "images": int(images), "seed": int(seed),
        "zero_shot": accuracy[0], "full": accuracy[-1] - accuracy[0], "kept": change, "interval": [low, high],
        "refined": refined_top1(last) - accuracy[0],
        "alpha": choice.climb.alpha, "best": max(accuracy) - accuracy[0], "agreement": choice.climb.agreement,
        "preferred": choice.climb.preferred, "gate_on_all": gate(last, len(RUNGS), 0.0, shares),
        "gate_on_kept": gate(last, rung, choice.climb.alpha, shares), "rungs": choice.to_dict()["rungs"],
        "signals": [point for snapshot in snapshots for point in points(snapshot)],
    }  # fmt: skip


def on_unlabeled(kept: Kept) -> RungPredictions:
    return RungPredictions(np.arange(len(kept["hidden"])), kept["tokens"], kept["probabilities"], kept["labels"])


def gate(kept: Kept, rung: int, chosen: float, shares: np.ndarray | None = None) -> bool:
    """Would the label-free gate pass the model at this rung, looking at the test images without their labels?"""
    if rung == 0:
        return True  # zero-shot itself
    drawn = alike(kept["test_truth"], kept["counts"])
    probabilities, labels = (kept[name][: rung + 1, drawn] for name in ("test_probabilities", "test"))
    seen = RungPredictions(drawn, kept["test_tokens"][drawn], probabilities, labels)
    choice = choose_alpha(seen, RUNGS[:rung], shares)
    renamed, outcome = choice.signal["renamed"] or 0, choice.outcome
    if outcome == "gain":  # only where look-alikes decided for half or more of the images that change class
        before, kept_here, after = labels[[0, (0.0, *RUNGS).index(choice.climb.alpha), -1]]
        if (kept_here != after).mean() > (before != after).mean() / 2:
            outcome = "undecided"
    return renamed <= 0.02 and (outcome in ("gain", "same") or (outcome == "undecided" and chosen > 0))


def alike(truth: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Test images with classes as frequent as among the unlabeled ones: as many of each class as there are."""
    have = np.bincount(truth, minlength=len(counts))
    share = counts / np.maximum(have, 1)
    wanted = np.round(have * share / share[have > 0].max()).astype(int)
    return np.sort(np.concatenate([np.flatnonzero(truth == k)[:many] for k, many in enumerate(wanted)]))


def interval(kept: Kept, rung: int) -> tuple[float, float]:
    """95% interval of the change, in points, over resampled test images; both models on the same ones."""
    truth, counts = kept["test_truth"], kept["counts"]
    have = np.bincount(truth, minlength=len(counts))
    weight = (counts / np.maximum(have, 1))[truth]
    step = weight * ((kept["test"][rung] == truth).astype(float) - (kept["test"][0] == truth))
    drawn = np.random.default_rng(0).integers(0, len(truth), (REPLICATES, len(truth)))
    changes = 100 * step[drawn].sum(axis=1) / np.maximum(weight[drawn].sum(axis=1), 1e-9)
    low, high = np.percentile(changes, [2.5, 97.5])
    return float(low), float(high)


def points(kept: Kept) -> list[dict[str, float]]:
    """What each signal says of rungs 0.3, 0.6 and 1 on unlabeled images, and what is true on the test images."""
    neighbours, originals = look_alikes(kept["tokens"].astype(np.float32))
    labels, said = kept["labels"][:, originals], kept["probabilities"][:, originals].astype(np.float64)
    truth, counts, classes = kept["test_truth"], kept["counts"], said.shape[-1]
    start, sure = top1(kept["test"][0], truth, counts), said[0].max(-1) > CONFIDENT
    found = []
    for alpha in (0.3, 0.6, 1.0):
        rung = (0.0, *RUNGS).index(alpha)
        signal = signals(labels[0], labels[rung], neighbours, classes)
        same = labels[0] == labels[rung]
        change = top1(kept["test"][rung], truth, counts) - start
        found.append({
            "change": change, "nmi - 2 renamed": signal["value"], "nmi": signal["adapted"],
            "kappa of look-alikes": agreement(labels[rung], neighbours, classes), "agreement": same.mean(),
            "agreement where confident": same[sure].mean() if sure.any() else same.mean(),
            "estimated change": estimated_change(scores(said[0]), scores(said[rung])),
            "effective classes": effective(labels[rung], classes), "confidence": said[rung].max(-1).mean(),
        })  # fmt: skip
    return [{name: float(value) for name, value in point.items()} for point in found]


def scores(said: np.ndarray) -> Scores:
    top = np.argsort(-said, axis=1, kind="stable")[:, :5]
    value = np.take_along_axis(said, top, axis=1)
    none = np.full(len(said), np.nan, np.float32)
    return Scores(top.astype(np.int32), value.astype(np.float32), none, none, said.sum(0), said.T @ said)


def effective(labels: np.ndarray, classes: int) -> float:
    share = np.bincount(labels, minlength=classes) / len(labels)
    share = share[share > 0]
    return float(np.exp(-(share * np.log(share)).sum()))
