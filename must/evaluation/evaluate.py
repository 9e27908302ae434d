"""The stage `must evaluate`: an adapted model against its baseline on one split, with labels or without."""

import logging
import traceback
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from must import __version__
from must.base import storage
from must.base.files import DESCRIPTION_FILE, METRICS_FILE, PREDICTIONS_FILE, REPORT_FILE
from must.base.text import cell, encoded, format_csv, printable
from must.config import EvaluateConfig
from must.data.format.index import load_index
from must.data.image.preprocess import Preprocess
from must.data.loading.loader import EvalSource
from must.evaluation.metrics import (
    REPLICATES,
    Labelled,
    bootstrap,
    compare,
    confused_pairs,
    confusion_matrix,
    interval,
    label_free,
    labelled_results,
    paired,
    per_class,
    reliability,
    scalar_metrics,
)
from must.evaluation.report.provenance import stability, training_log
from must.evaluation.report.verdict import verdict
from must.evaluation.result import Accuracy, Data, LabelFree, Metrics, Model, RefinedLabels, write_metrics
from must.evaluation.scores import SampleFeatures, Samples, Scores, score_split
from must.evaluation.table import text_table
from must.method.answers.estimate import abstention, difference, share
from must.method.distributed.process_group import World, init_distributed
from must.method.memory.alpha import CLASSIFIER_PREFIXES
from must.method.memory.pool import Predicted, compare_predictions, read_pool, subsample
from must.method.model.bundle import Bundle, load_bundle, zero_shot_bundle
from must.method.model.classifier import load_text_classifier
from must.method.model.description import get_preprocess, require_classes, require_same_model

logger = logging.getLogger(__name__)

MAP_IMAGES = 240  # images at most in the report's map
MATRIX_LIMIT = 200  # classes up to which the confusion matrices are written out


def evaluate(config: EvaluateConfig) -> Metrics:
    """Writes metrics.json, predictions.csv and report.html to OUTPUT, prints a table, returns the metrics.

    Under torchrun every process scores its part of the split, and rank 0 writes.
    Raises ValueError: no bundle, no such split, a baseline for other classes, a label that is not a class.
    """
    import must.evaluation.report.page  # noqa: F401, fails now, not after the work, if jinja2 is missing

    refined = RefinedLabels.read(config.refined) if config.refined else None
    with init_distributed(config.device, config.timeout) as world:
        bundle = load_bundle(config.model)
        if refined and refined.weights_sha256:
            remedy = "run `must refine` again"
            require_same_model(f"--refined {config.refined}", refined.weights_sha256, bundle.description, remedy)
        baseline = load_baseline(config.baseline) if config.baseline else None
        if baseline:
            require_classes(f"--baseline {config.baseline}", bundle.description.classes, baseline.description.classes)
        index = load_index(config.shards, config.index_sha256)  # fails early if there is none
        samples, after, before, tower = score(config, bundle, baseline, world)
        metrics = measure(samples, after, before, tower, bundle.description.classes)
        correct = after.prediction[samples.labelled] == samples.labels[samples.labelled]
        metrics = replace(metrics, abstention=abstention(config.risk, after.confidence[samples.labelled], correct))
        if not world.is_main:
            return metrics
        data = Data(
            config.shards, config.split, index.sha256, index.revision, index.splits, index.rejected, index.duplicates,
        )  # fmt: skip
        compared, features = metrics.label_free.compared, None
        if baseline and before and compared:
            compared = replace(
                compared, check=compare_predictions(predicted(before), predicted(after), metrics.classes)
            )
            features = read_features(config, bundle, samples, world.device)
        description = bundle.description
        model = Model(
            config.model, description.backbone, description.pretrained, description.logit_factor,
            description.must_version, description.weights_sha256, description.provenance.to_dict(),
        )  # fmt: skip
        metrics = replace(
            metrics,
            label_free=replace(metrics.label_free, compared=compared, training=stability(training_log(config.model))),
            baseline_name=baseline_name(baseline),
            model=model,
            data=data,
            refined=refined.to_dict() if refined else None,
            config=config.to_dict(),
            must_version=__version__,
        )
        storage.write_bytes(
            storage.join(config.output, PREDICTIONS_FILE), predictions_csv(samples, after, before, metrics.classes)
        )
        write_metrics(storage.join(config.output, METRICS_FILE), metrics)
        # last: a folder with report.html has all files, and an error here leaves the numbers
        report = report_page(config, metrics, samples, after, before, refined, features)
        storage.write_bytes(storage.join(config.output, REPORT_FILE), encoded(report))
        logger.info(f"{printable(verdict(metrics).plain)}\n\n{text_table(metrics)}")
        if samples.skipped:
            logger.info(f"{samples.skipped} images could not be decoded and were left out")
        logger.info(f"\nreport: {storage.join(config.output, REPORT_FILE)}")
        return metrics


def load_baseline(uri: str) -> Bundle:
    """A bundle, or the zero-shot model of a classifier file. Raises ValueError: neither."""
    if storage.exists(storage.join(uri, DESCRIPTION_FILE)):
        return load_bundle(uri)
    return zero_shot_bundle(load_text_classifier(uri, "--baseline"))


def score(
    config: EvaluateConfig, bundle: Bundle, baseline: Bundle | None, world: World
) -> tuple[Samples, Scores, Scores | None, Scores | None]:
    """One pass for all models; two if the baseline's preprocessing differs. The last scores: of the model without its
    memory, None if it has none."""
    models = [bundle.classifier, *([bundle.model] if bundle.memory else [])]
    preprocess = get_preprocess(bundle.description)
    other = [bundle.model if is_same_network(baseline, bundle) else baseline.classifier] if baseline else []
    same_pixels = not baseline or get_preprocess(baseline.description) == preprocess

    def run(models: list[Any], preprocess: Preprocess) -> tuple[Samples, list[Scores]]:
        source = EvalSource.open(config, preprocess, world.rank, world.size)
        return score_split(models, source, bundle.description.classes, world, config.labels == "auto")

    samples, scores = run(models + (other if same_pixels else []), preprocess)
    if baseline and not same_pixels:
        scores += run(other, get_preprocess(baseline.description))[1]
    return samples, scores[0], scores[-1] if baseline else None, scores[1] if bundle.memory else None


def is_same_network(baseline: Bundle, bundle: Bundle) -> bool:
    """Whether the baseline, without a memory, has the weights of the bundle, as before any training."""
    if (
        baseline.memory
        or bundle.description.provenance.config
        or get_preprocess(baseline.description) != get_preprocess(bundle.description)
    ):
        return False
    first, second = (
        {name: value for name, value in each.model.state_dict().items() if name.startswith(CLASSIFIER_PREFIXES)}
        for each in (baseline, bundle)
    )
    same = first.keys() == second.keys() and all(torch.equal(value, second[name]) for name, value in first.items())
    return same and baseline.model.logit_factor == bundle.model.logit_factor


def predicted(scores: Scores) -> Predicted:
    return Predicted(torch.from_numpy(scores.prediction).long(), torch.from_numpy(scores.confidence))


def mean_similarity(scores: Scores) -> float | None:
    """None: the model has no memory."""
    return None if np.isnan(scores.similarity).any() else round(float(scores.similarity.mean()), 4)


def read_features(config: EvaluateConfig, bundle: Bundle, samples: Samples, device: torch.device) -> SampleFeatures:
    """Vectors of at most MAP_IMAGES of the images, for the map. Runs in this process only."""
    source = subsample(EvalSource.open(config, get_preprocess(bundle.description)), MAP_IMAGES)
    memory = bundle.memory.to(device) if bundle.memory else None
    pool = read_pool(bundle.model, source, device, whitening=(memory.tokens, memory.embedding) if memory else None)
    return SampleFeatures(np.searchsorted(samples.numbers, pool.numbers.numpy()), pool.vectors.float().numpy())


def measure(
    samples: Samples, after: Scores, before: Scores | None, tower: Scores | None, classes: list[str]
) -> Metrics:
    """The part of metrics.json that is computed from scores and labels."""
    chosen = samples.labelled
    metrics = Metrics(
        images=len(samples.numbers),
        labelled=int(chosen.sum()),
        skipped=samples.skipped,
        classes=classes,
        similarity=mean_similarity(after),
        bootstrap_replicates=REPLICATES,
        label_free=LabelFree(
            label_free(after),
            label_free(before) if before else None,
            compare(before, after) if before else None,
        ),
    )
    if not chosen.any():
        return metrics
    new = labelled_results(after, samples.labels, chosen, len(classes))
    old, bare = (
        labelled_results(each, samples.labels, chosen, len(classes)) if each else None for each in (before, tower)
    )
    return measure_labelled(metrics, new, old, bare)


def measure_labelled(metrics: Metrics, new: Labelled, old: Labelled | None, tower: Labelled | None) -> Metrics:
    models = {"adapted": new} | ({"baseline": old} if old else {}) | ({"tower": tower} if tower else {})
    replicates = bootstrap(list(models.values()))
    accuracies = dict[str, Accuracy]()
    for number, (name, results) in enumerate(models.items()):
        values = scalar_metrics(results)
        spread = {key: interval([replicate[number][key] for replicate in replicates]) for key in values}
        spread |= {key: share(right)[1:] for key, right in rights(results).items()}
        del spread["ece"]  # its replicates are biased upwards, so that the interval may not hold the value
        accuracies[name] = Accuracy(**values, intervals=spread, reliability=reliability(results))
    differences = {  # adapted - baseline
        key: interval([after[key] - before[key] for after, before, *_ in replicates])
        for key in scalar_metrics(new)
        if old
    }
    if old:  # valid also for few images and for none that was broken, where a bootstrap's interval is too narrow
        del differences["ece"]
        differences |= {key: difference(rights(old)[key], right)[1:] for key, right in rights(new).items()}
    return replace(
        metrics,
        adapted=accuracies["adapted"],
        baseline=accuracies.get("baseline"),
        tower=accuracies.get("tower"),
        intervals=differences,
        paired=paired(old, new) if old else None,
        per_class=class_table(new, old, metrics.classes),
        confusion={name: confusion(results) for name, results in models.items() if name != "tower"},
    )


def rights(results: Labelled) -> dict[str, np.ndarray]:
    """Bool [N] by the name of an accuracy: which images are right."""
    return {"top1": results.correct, "top5": results.in_top}


def class_table(new: Labelled, old: Labelled | None, classes: list[str]) -> list[dict[str, Any]]:
    rows = []
    baseline_rows: list[dict[str, Any]] = per_class(old) if old else [{} for _ in classes]
    for name, after, before in zip(classes, per_class(new), baseline_rows, strict=True):
        recall, former = after["recall"], before.get("recall")
        rows.append(
            {"class": name, **after}
            | {f"baseline_{key}": before.get(key) for key in ("recall", "precision", "f1")}
            | {"difference": recall - former if recall is not None and former is not None else None}
        )
    return rows


def confusion(results: Labelled) -> dict[str, Any]:
    """The most frequent confusions as class numbers; the full matrix for up to MATRIX_LIMIT classes."""
    matrix = confusion_matrix(results.labels, results.prediction, results.classes)
    return {
        "pairs": [{"label": r, "prediction": c, "images": n} for r, c, n in confused_pairs(matrix, 50)],
        "matrix": matrix.tolist() if results.classes <= MATRIX_LIMIT else None,
    }


def report_page(
    config: EvaluateConfig, metrics: Metrics, samples: Samples, after: Scores, before: Scores | None,
    refined: RefinedLabels | None, features: SampleFeatures | None,
) -> str:  # fmt: skip
    """The report; if it cannot be rendered, a plain page with the table and the error."""
    from must.evaluation.report.page import plain_page, render_report

    try:
        return render_report(config, metrics, samples, after, before, refined, features)
    except Exception as error:
        reason = printable(f"{type(error).__name__}: {error}", 300)
        logger.warning(
            f"warning: the report could not be drawn ({reason}); all numbers are in "
            f"{storage.join(config.output, METRICS_FILE)}, and the page holds the table alone"
        )
        return plain_page(text_table(metrics), "".join(traceback.format_exception(error)))


def baseline_name(baseline: Bundle | None) -> str:
    if baseline is None:
        return "none"
    return "baseline" if baseline.description.provenance else "zero-shot"


def predictions_csv(samples: Samples, after: Scores, before: Scores | None, classes: list[str]) -> bytes:
    """One row per image: source, label, the adapted model's class and probability, and the baseline's."""
    classes = [cell(name) for name in classes]
    models = {"adapted": after} | ({"baseline": before} if before else {})
    rows = [["sample", "source", "label", *(column for name in models for column in (name, f"{name}_probability"))]]
    for i, number in enumerate(samples.numbers):
        label = classes[samples.labels[i]] if samples.labels[i] >= 0 else ""
        rows.append([str(number), cell(samples.sources[i]), label])
        for scores in models.values():
            rows[-1] += [classes[scores.prediction[i]], f"{scores.confidence[i]:.4f}"]
    return format_csv(rows)
