"""Refined zero-shot on the shift suite's tasks: the rival that is never trained.

    python -m benchmarks.shifts.refined --tasks digits mnist --variants as-is tail half

Seconds a task. For each: how well look-alikes know the classes (kappa), top-1 of zero-shot on the test images, and what
`must refine` changes: on the unlabeled images themselves (predictions.csv), on test images that are refined beside the
unlabeled ones, and on test images that nothing saw, by the fitted classifier. "unguarded" is what would have been
changed on the unlabeled images had the look-alikes been trusted in any case. Test images are weighted so that classes
are as frequent as among the unlabeled ones. --repeat N draws the variants N times.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.shifts.packages import ROOT
from benchmarks.shifts.run import prepared, top1, truth
from benchmarks.shifts.tasks import TASKS, VARIANTS, task, variant
from must.data.loading.loader import EvalSource
from must.data.loading.reader import open_reader
from must.method.model.bundle import preprocess_of, zero_shot_bundle
from must.method.model.classifier import load_text_classifier
from must.method.select.image_features import ImageFeatures, extract_features
from must.method.select.label_propagation import for_copies, recognised, refined
from must.method.select.ladder import KNOWING, MIN_IMAGES, agreement, preferred
from must.method.select.neighbours import look_alikes
from must.method.select.refine import RECOGNISED, improve

COLUMNS = ("unlabeled", "unguarded", "beside", "classifier")


def refined_top1(looks: dict[str, np.ndarray]) -> float:
    """Top-1, in percent, of test images that are refined beside the unlabeled ones; zero-shot's under the guard.

    Args:
        looks: what `run.measured` kept of a run, looks-*.npz.
    """
    before, test = (looks[name][0].astype(np.float32) for name in ("probabilities", "test_probabilities"))
    return beside(looks["tokens"], before, looks["test_tokens"], test, looks["test_truth"], looks["counts"])


def beside(
    tokens: np.ndarray, before: np.ndarray, test_tokens: np.ndarray, test: np.ndarray, labels: np.ndarray,
    counts: np.ndarray,
) -> float:  # fmt: skip
    said = test.argmax(1)
    if trusted(tokens, before):
        there = np.flatnonzero(counts[labels] > 0)  # images of classes that nobody is asked about look like nothing
        together = np.concatenate([tokens, test_tokens[there]]).astype(np.float32)
        neighbours, originals = look_alikes(together)
        better = refined(np.concatenate([before, test[there]])[originals], neighbours)
        said[there] = for_copies(better, originals, together)[len(tokens) :].argmax(1)
    return top1(said, labels, counts)


def trusted(tokens: np.ndarray, before: np.ndarray) -> bool:
    neighbours, originals = look_alikes(tokens)
    if len(originals) < MIN_IMAGES:
        return False
    share = preferred(before[originals], neighbours)
    return (share is None or share >= KNOWING) and recognised(before[originals], neighbours) >= RECOGNISED


def measured(name: str, variant_name: str, seed: int) -> dict[str, Any]:
    made = variant(task(name), variant_name, seed)
    shards, names = prepared(ROOT / "work" / f"{name}.{variant_name}.{seed}", made)
    classifier = load_text_classifier(names)
    zero_shot, cpu = zero_shot_bundle(classifier), torch.device("cpu")
    preprocess, text, factor = preprocess_of(zero_shot.description), classifier.weights.numpy(), classifier.logit_scale
    seen: dict[str, ImageFeatures] = {}
    looking: dict[str, float] = {}
    for split in ("train", "test"):
        started = time.perf_counter()
        seen[split] = extract_features(zero_shot.model, EvalSource(open_reader(shards, split), preprocess, 256, 0), cpu)
        looking[split] = time.perf_counter() - started
    sight, test = seen["train"], seen["test"]
    hidden, labels = (truth(shards, split, made) for split in ("train", "test"))
    counts = np.bincount(hidden[hidden >= 0], minlength=len(made.classes))
    started = time.perf_counter()
    neighbours, originals = look_alikes(sight.tokens)
    before = sight.probabilities(text, factor)
    kappa = agreement(before[originals].argmax(1), neighbours, before.shape[1])
    after, weights, found = improve(sight, text, factor, neighbours, originals, cpu)
    working = time.perf_counter() - started
    trust, known = trusted(sight.tokens, before), hidden >= 0
    share = [float(100 * (p.argmax(1) == hidden)[known].mean()) for p in (before, after)]
    own = top1((test.features @ text).argmax(1), labels, counts)
    fitted = top1((test.features @ weights).argmax(1), labels, counts)
    joint = beside(sight.tokens, before, test.tokens, test.probabilities(text, factor), labels, counts)
    return {
        "task": name, "variant": variant_name, "seed": seed, "images": len(hidden), "kappa": kappa, "zero_shot": own,
        "trusted": trust, "unlabeled": share[1] - share[0] if trust else 0.0, "unguarded": share[1] - share[0],
        "beside": joint - own, "classifier": fitted - own if trust else 0.0, "alpha": found.alpha if trust else 0.0,
        "unguarded_classifier": fitted - own, "looking_s": looking["train"], "refining_s": working,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=TASKS)
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=VARIANTS)
    parser.add_argument("--repeat", type=int, default=1, help="draws of each variant, with seeds 0, 1, ...")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print("| task | variant | images | kappa | zero-shot | unlabeled | unguarded | beside | classifier | seconds |")
    print("|---|---|--:|--:|--:|--:|--:|--:|--:|--:|")
    rows = []
    for name in options.tasks:
        for variant_name in options.variants:
            for seed in range(options.repeat if variant_name != "as-is" else 1):
                with contextlib.redirect_stdout(io.StringIO()):
                    row = measured(name, variant_name, seed)
                rows.append(row)
                changes = " | ".join(f"{row[column]:+.1f}" for column in COLUMNS)
                print(
                    f"| {name} | {variant_name} | {row['images']:,} | {row['kappa']:.2f} | {row['zero_shot']:.1f} | "
                    f"{changes} at {row['alpha']:.1f} | {row['looking_s'] + row['refining_s']:.1f} |",
                    flush=True,
                )
    Path(ROOT / "refined.json").write_text(json.dumps(rows, indent=1))
    for column in COLUMNS:
        values = np.array([row[column] for row in rows])
        print(f"{column}: sum {values.sum():+.1f}, least {values.min():+.1f}, below zero in {(values < 0).sum()} of "
              f"{len(rows)}")  # fmt: skip


if __name__ == "__main__":
    main()
