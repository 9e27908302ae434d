"""A model's predictions for every image of a split, small enough to keep for millions of images; and what they say with
labels and without: accuracy, calibration and confusion, with intervals.

N images, K classes. The figures without labels (agreement, confidence, class balance) do not measure accuracy;
benchmarks/README.md says that none told good adaptations from bad ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from must.answers.accuracy import compare_paired_answers, share
from must.base.errors import UserError
from must.data.reader import ShardReader
from must.evaluation.result import Accuracy, Compared, Interval, LabelFree, Metrics, ModelFigures, Paired
from must.memory.features import Features
from must.memory.predictions import TopLabels, compare_predictions
from must.model.masked_vit import MaskedViT
from must.model.memory import Memory

AT_ONCE = 1_024  # images that a memory is asked about at a time
TOP_K = 5
NO_LABEL = -1


@dataclass
class Samples:
    """Which images were scored, in the split's order. N images."""

    numbers: np.ndarray  # int64 [N], numbers in the split
    labels: np.ndarray  # int64 [N], class numbers, NO_LABEL without a label
    sources: np.ndarray  # object [N], where each image came from
    skipped: int = 0  # images that could not be decoded
    answered: np.ndarray | None = None  # bool [N], images whose answers are in a model: their labels measure nothing

    def only(self, numbers: np.ndarray) -> Samples:
        """Those that could be decoded."""
        skipped = len(self.numbers) - len(numbers)
        return Samples(self.numbers[numbers], self.labels[numbers], self.sources[numbers], skipped)

    @property
    def labelled(self) -> np.ndarray:
        """bool [N], the images that accuracies are measured on"""
        labelled = self.labels != NO_LABEL
        return labelled if self.answered is None else labelled & ~self.answered


@dataclass
class Scores:
    """One model's predictions. N images, K classes, T = min(5, K).

    Full probability vectors are not kept (for ImageNet's training images they would take 5 GB): the five best are
    enough for the metrics."""

    top: np.ndarray  # int32 [N, T], the most probable classes, best first
    top_probability: np.ndarray  # float32 [N, T]
    label_log_probability: np.ndarray  # float32 [N], nan without a label
    similarity: np.ndarray  # float32 [N], to the images that the model remembers; nan without a memory
    named: np.ndarray  # bool [N], where a class is more probable than none of the classes

    @property
    def prediction(self) -> np.ndarray:
        """int32 [N]"""
        return self.top[:, 0]

    @property
    def confidence(self) -> np.ndarray:
        """float32 [N]"""
        return self.top_probability[:, 0]


def read_samples(reader: ShardReader, classes: Sequence[str], use_labels: bool = True) -> Samples:
    """All images of the split, with their labels. Raises UserError: a label is no class."""
    lookup = {name: number for number, name in enumerate(classes)}
    descriptions = [reader.description(number) for number in range(len(reader))]
    sources = [description.get("source", "") for description in descriptions]
    labels = label_numbers([one.get("label") if use_labels else None for one in descriptions], lookup, sources)
    return Samples(np.arange(len(labels)), labels, np.array(sources, dtype=object))


@torch.inference_mode()
def score(
    model: MaskedViT, memory: Memory | None, features: Features, labels: np.ndarray, device: torch.device
) -> Scores:
    """The predictions of a model, with its memory if it has one, for the images of `find_rows` with these labels, int64
    [N]. The features are of its tower; their vectors are of its memory's whitenings."""
    memory = memory.to(device).eval() if memory else None
    rows = features.find_rows()[1]
    columns = list[tuple[np.ndarray, ...]]()
    for start in range(0, len(rows), AT_ONCE):
        block = torch.from_numpy(rows[start : start + AT_ONCE])
        output = features.logits(model, block, device).log_softmax(-1)
        similarity = torch.full((len(block),), torch.nan)
        if memory:
            vectors = F.normalize(features.vectors[block].to(device).float(), dim=1)
            probability, similarity = memory(output.exp(), vectors)
            output = probability.log()
        columns.append(score_batch(output, similarity, labels[start : start + AT_ONCE]))
    return Scores(*concatenate(columns))


def score_batch(log_probability: Tensor, similarity: Tensor, labels: np.ndarray) -> tuple[np.ndarray, ...]:
    """A batch's values of the fields of Scores. Log probabilities [B, K], similarity [B], class numbers [B] or
    NO_LABEL."""
    probability = log_probability.exp()
    values, top = probability.topk(min(TOP_K, probability.shape[1]), dim=-1)
    index = torch.from_numpy(labels).to(probability.device)
    of_label = log_probability.gather(1, index.clamp(min=0)[:, None])[:, 0]
    of_label = torch.where(index == NO_LABEL, torch.nan, of_label)
    named = 1 - probability.sum(-1) <= values[:, 0]
    fields = (top.int(), values, of_label, similarity, named)
    return tuple(field.cpu().numpy() for field in fields)


def label_numbers(labels: Sequence[str | None], lookup: dict[str, int], sources: Sequence[str]) -> np.ndarray:
    """Class numbers, int64 [B]."""
    for label, source in zip(labels, sources, strict=True):
        if label is not None and label not in lookup:
            known = ", ".join(list(lookup)[:20]) + (", ..." if len(lookup) > 20 else "")
            raise UserError(
                f"{source or 'an image'}: its label '{label}' is none of the {len(lookup)} classes ({known}); "
                "rename the label or the class, or evaluate without labels: --labels ignore"
            )
    return np.array([NO_LABEL if label is None else lookup[label] for label in labels], dtype=np.int64)


def concatenate(batches: Sequence[tuple[np.ndarray, ...]]) -> list[np.ndarray]:
    """The batches' arrays, each concatenated over the batches."""
    return [np.concatenate(arrays) for arrays in zip(*batches, strict=True)]


BINS = 15
MATRIX_LIMIT = 200  # classes up to which the confusion matrix is written out


@dataclass(frozen=True)
class Labelled:
    """One model's results on the labelled images: the input of every metric and its bootstrap."""

    labels: np.ndarray  # int64 [N]
    prediction: np.ndarray  # int [N]
    correct: np.ndarray  # bool [N]
    in_top: np.ndarray  # bool [N]: the label is among the five best
    nll: np.ndarray  # float64 [N], nats
    confidence: np.ndarray  # float64 [N]
    classes: int  # K

    @property
    def rights(self) -> dict[str, np.ndarray]:
        """Bool [N] by the name of an accuracy: which images are right."""
        return {"top1": self.correct, "top5": self.in_top}


def select_labelled(scores: Scores, labels: np.ndarray, chosen: np.ndarray, classes: int) -> Labelled:
    """`chosen`: bool [N], the images that have a label."""
    top, known = scores.top[chosen], labels[chosen]
    return Labelled(
        labels=known,
        prediction=top[:, 0].astype(np.int64),
        correct=top[:, 0] == known,
        in_top=(top == known[:, None]).any(axis=1),
        nll=-scores.label_log_probability[chosen].astype(np.float64),
        confidence=scores.confidence[chosen].astype(np.float64),
        classes=classes,
    )


def compute_scalar_metrics(results: Labelled, weights: np.ndarray | None = None) -> dict[str, float]:
    """top1, top5, mean_per_class (fractions; of the classes that have images), nll (nats), ece (fraction), confidence.

    `weights` [N]: how often each image is in a bootstrap replicate; by default once."""
    w = np.ones(len(results.labels)) if weights is None else weights
    total = w.sum()
    support = np.bincount(results.labels, w, results.classes)
    hits = np.bincount(results.labels, w * results.correct, results.classes)
    recall = np.divide(hits, support, out=np.full(results.classes, np.nan), where=support > 0)
    return {
        "top1": float(w @ results.correct / total),
        "top5": float(w @ results.in_top / total),
        "mean_per_class": float(np.nanmean(recall)),
        "nll": float(w @ results.nll / total),
        "ece": compute_calibration_error(results.confidence, results.correct, w),
        "confidence": float(w @ results.confidence / total),
    }


def compute_calibration_error(confidence: np.ndarray, correct: np.ndarray, weights: np.ndarray) -> float:
    """Expected calibration error over 15 equal bins of confidence (Guo et al. 2017, arXiv 1706.04599, eq. 3)."""
    bins = np.clip(np.ceil(confidence * BINS).astype(np.int64) - 1, 0, BINS - 1)  # (low, high], as in the paper
    gap = np.bincount(bins, weights * (correct - confidence), BINS)
    return float(np.abs(gap).sum() / weights.sum())


def count_confusions(labels: np.ndarray, prediction: np.ndarray, classes: int) -> np.ndarray:
    """Counts, int64 [K, K]: row = label, column = prediction."""
    flat = np.bincount(labels * classes + prediction, minlength=classes**2)
    return flat.reshape(classes, classes)


def measure_classes(results: Labelled) -> list[dict[str, Any]]:
    """For each class: support, predicted (counts), recall, precision, f1 (fractions; None where undefined)."""
    matrix = count_confusions(results.labels, results.prediction, results.classes)
    counts = zip(matrix.diagonal().tolist(), matrix.sum(1).tolist(), matrix.sum(0).tolist(), strict=True)
    return [
        {
            "support": support,
            "predicted": predicted,
            "recall": hits / support if support else None,
            "precision": hits / predicted if predicted else None,
            "f1": 2 * hits / (support + predicted) if support + predicted else None,
        }
        for hits, support, predicted in counts
    ]


def list_confused_pairs(matrix: np.ndarray, limit: int) -> list[tuple[int, int, int]]:
    """The most frequent confusions as (label, prediction, count)."""
    off = matrix.copy()
    np.fill_diagonal(off, 0)
    order = np.argsort(-off, axis=None, kind="stable")[:limit]
    rows, columns = np.unravel_index(order, off.shape)
    return [(int(r), int(c), int(off[r, c])) for r, c in zip(rows, columns, strict=True) if off[r, c]]


REPLICATES = 1000


def resample_metrics(models: list[Labelled], replicates: int = REPLICATES) -> dict[str, np.ndarray]:
    """By metric, float [R, M]: of the M models on R resampled test sets.

    Sampling with replacement (Efron & Tibshirani 1993). A replicate has the same images for all models, so that the
    interval of a difference is that of paired results."""
    count = len(models[0].labels)
    generator = np.random.default_rng(0)
    rows = []
    for _ in range(replicates):
        weights = np.bincount(generator.integers(0, count, count), minlength=count).astype(np.float64)
        rows.append([compute_scalar_metrics(model, weights) for model in models])
    return {key: np.array([[model[key] for model in row] for row in rows]) for key in rows[0][0]}


def find_interval(values: np.ndarray) -> Interval:
    """The 95% percentile interval [low, high]."""
    low, high = np.nanpercentile(values, [2.5, 97.5])
    return float(low), float(high)


def label_free(scores: Scores, classes: int) -> ModelFigures:
    """Of K `classes`."""
    histogram = np.bincount(scores.prediction, minlength=classes)
    return ModelFigures(float(scores.confidence.mean(dtype=np.float64)), histogram.tolist())


def count_predicted(scores: Scores) -> TopLabels:
    return TopLabels(torch.from_numpy(scores.prediction).long(), torch.from_numpy(scores.confidence))


def measure(
    samples: Samples, after: Scores, before: Scores | None, tower: Scores | None, classes: list[str]
) -> Metrics:
    """The part of metrics.json that is computed from scores and labels."""
    chosen, compared = samples.labelled, None
    if before:
        check = compare_predictions(count_predicted(before), count_predicted(after), classes)
        compared = Compared(float((before.prediction == after.prediction).mean()), check)
    has_memory = not np.isnan(after.similarity).any()
    metrics = Metrics(
        images=len(samples.numbers),
        labelled=int(chosen.sum()),
        answered=int((samples.labels != NO_LABEL).sum() - chosen.sum()),
        skipped=samples.skipped,
        classes=classes,
        similarity=round(float(after.similarity.mean()), 4) if has_memory else None,
        bootstrap_replicates=REPLICATES,
        label_free=LabelFree(
            label_free(after, len(classes)), label_free(before, len(classes)) if before else None, compared
        ),
    )
    if not chosen.any():
        return metrics
    models = {"adapted": after, "baseline": before, "tower": tower}
    results = {
        name: select_labelled(scores, samples.labels, chosen, len(classes)) for name, scores in models.items() if scores
    }
    new, old = results["adapted"], results.get("baseline")
    replicates = resample_metrics([*results.values()])
    del replicates["ece"]  # they are biased upwards, so that the interval may not hold the value
    accuracies = dict[str, Accuracy]()
    for number, (name, one) in enumerate(results.items()):
        spread = {key: find_interval(values[:, number]) for key, values in replicates.items()}
        spread |= {key: share(right)[1:] for key, right in one.rights.items()}
        accuracies[name] = Accuracy(**compute_scalar_metrics(one), intervals=spread)
    differences = dict[str, Interval]()  # adapted - baseline
    if old:
        differences = {key: find_interval(values[:, 0] - values[:, 1]) for key, values in replicates.items()}
        # valid also for few images and for none that was broken, where a bootstrap's interval is too narrow
        differences |= {key: compare_paired_answers(old.rights[key], right)[1:] for key, right in new.rights.items()}
    return replace(
        metrics,
        adapted=accuracies["adapted"],
        baseline=accuracies.get("baseline"),
        tower=accuracies.get("tower"),
        intervals=differences,
        paired=Paired(int((~old.correct & new.correct).sum()), int((old.correct & ~new.correct).sum()))
        if old
        else None,
        per_class=make_class_table(new, old, classes),
        confusion=summarize_confusion(new),
    )


def make_class_table(new: Labelled, old: Labelled | None, classes: list[str]) -> list[dict[str, Any]]:
    rows = []
    baseline_rows: list[dict[str, Any]] = measure_classes(old) if old else [{} for _ in classes]
    for name, after, before in zip(classes, measure_classes(new), baseline_rows, strict=True):
        former = {f"baseline_{key}": before.get(key) for key in ("recall", "precision", "f1")}
        known = None not in (after["recall"], former["baseline_recall"])
        change = after["recall"] - former["baseline_recall"] if known else None
        rows.append({"class": name, **after, **former, "difference": change})
    return rows


def summarize_confusion(results: Labelled) -> dict[str, Any]:
    """The model's most frequent confusions as class numbers; the matrix, for up to MATRIX_LIMIT classes."""
    matrix = count_confusions(results.labels, results.prediction, results.classes)
    return {
        "pairs": [{"label": r, "prediction": c, "images": n} for r, c, n in list_confused_pairs(matrix, 50)],
        "matrix": matrix.tolist() if results.classes <= MATRIX_LIMIT else None,
    }
