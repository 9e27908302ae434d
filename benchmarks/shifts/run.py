"""One run of the panel: trains with `--preset auto` or a change of it, and measures every share of the way.

    python -m benchmarks.shifts.run --tasks signs kana --variants as-is few --seed 0 [--change epochs=48 --name longer]

A result is a JSON file under build/shifts/results; what is there already is not done again.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from PIL import Image

from benchmarks.shifts.families import ROOT
from benchmarks.shifts.pretrain import pretrain
from benchmarks.shifts.tasks import FITTING, JUDGING, TOWERS, VARIANTS, Task, task, variant
from must.config import ClassifierConfig, ShardConfig, TrainConfig
from must.data.loading.loader import EvalSource
from must.data.loading.reader import ShardReader, open_reader
from must.data.shards.build import shard
from must.method.model.bundle import load_bundle, preprocess_of
from must.method.model.classifier import classifier
from must.method.select.check import Check, Predicted
from must.method.select.features import extract_features
from must.method.select.knn import nearest, whitened
from must.method.select.refine import refined_labels
from must.method.select.select import ALPHAS, WeightPath, adapted_end, both_ends, start_of
from must.method.train.trainer import train

DRAWS = 5  # of simulated answers
ANSWERS = (50, 200)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", default=FITTING, choices=(*FITTING, *JUDGING))
    parser.add_argument("--variants", nargs="+", default=["as-is"], choices=VARIANTS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--name", default="auto", help="of the settings, in the results")
    parser.add_argument("--change", nargs="+", default=[], metavar="SETTING=VALUE", help="of must train, over auto")
    options = parser.parse_args()
    torch.set_num_threads(1)
    change = {name: yaml.safe_load(value) for name, value in (item.split("=", 1) for item in options.change)}
    for variant_name in options.variants:
        for name in options.tasks:
            one(name, variant_name, options.seed, options.name, change)


def one(name: str, variant_name: str, seed: int, setting: str = "auto", change: dict[str, Any] | None = None) -> None:
    result = ROOT / "results" / f"{name}.{variant_name}.{setting}.{seed}.json"
    if result.exists():
        return
    if name in TOWERS:
        pretrain(TOWERS[name])
    logging.getLogger("must").setLevel(logging.ERROR)
    began = time.perf_counter()
    made = variant(task(name), name, variant_name, seed)
    shards, names = prepared(ROOT / "work" / f"{name}.{variant_name}.{seed}", made)
    folder = ROOT / "runs" / result.stem
    shutil.rmtree(folder, ignore_errors=True)  # of a run that was ended in the middle
    settings: dict[str, Any] = {"preset": "auto", "workers": 0, "device": "cpu", "trackers": [], "seed": seed}
    settings |= change or {}
    config = TrainConfig(shards=shards, classifier=names, output=str(folder), **settings)
    with contextlib.redirect_stdout(None):
        train(config)
    row = {"task": name, "variant": variant_name, "setting": setting, "seed": seed, "images": len(made.unlabeled)}
    trained = load_bundle(str(folder)).description.provenance.config
    row |= {"classes": len(made.classes), "epochs": trained["epochs"], "train_seconds": time.perf_counter() - began}
    row |= measured(str(folder), shards, names, made)
    shutil.rmtree(folder)
    result.parent.mkdir(parents=True, exist_ok=True)
    result.write_text(json.dumps(row))
    print(summary(row), flush=True)


def prepared(folder: Path, made: Task) -> tuple[str, str]:
    """(shards, classifier file) of a task."""
    shards, names = folder / "shards", folder / "classifier.safetensors"
    if not names.exists():
        for number, picture in enumerate(made.unlabeled):
            save(picture, folder / "unlabeled" / f"{number:05d}.png")
        for number, (picture, label) in enumerate(zip(made.test, made.labels, strict=True)):
            save(picture, folder / "test" / made.classes[label] / f"{number:05d}.png")
        (folder / "classes.yaml").write_text(yaml.safe_dump({"classes": made.classes, "templates": made.templates}))
        with contextlib.redirect_stdout(None):
            shard(ShardConfig(source=str(folder / "unlabeled"), test_source=str(folder / "test"), labels="folder",
                              output=str(shards), workers=1))  # fmt: skip
            classifier(ClassifierConfig(classes=str(folder / "classes.yaml"), model=made.model, output=str(names)))
    return str(shards), str(names)


def save(picture: np.ndarray, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture).save(path)


@torch.inference_mode()
def measured(folder: str, shards: str, names: str, made: Task) -> dict[str, Any]:
    """Accuracies of every share of the way on the test images, the check, and labels of the unlabeled images."""
    bundle, zero_shot = both_ends(adapted_end(folder), names)
    frozen, device = start_of(bundle, zero_shot), torch.device("cpu")
    preprocess = preprocess_of(bundle.description)
    path = WeightPath(frozen, bundle.model.state_dict(), ALPHAS[1:])
    labels, hidden = truth(shards, "test", made.labels), truth(shards, "train", made.hidden)
    counts = np.bincount(made.hidden[made.hidden >= 0], minlength=len(made.classes))
    test = extract_features(frozen, EvalSource(open_reader(shards, "test"), preprocess, 256, 0), device, path)
    predicted = test.probabilities.argmax(-1).numpy()
    accuracy = [top1(one, labels, counts) for one in predicted]
    errors = [paired_error(predicted[0], one, labels, counts) for one in predicted]
    pool = extract_features(frozen, EvalSource(open_reader(shards, "train"), preprocess, 256, 0), device, path)
    classes, at = [str(k) for k in range(len(made.classes))], {alpha: place for place, alpha in enumerate(ALPHAS)}
    neighbours, _ = nearest(whitened(pool.features.float()))
    selection = load_bundle(folder).description.provenance.selection
    assert selection is not None
    kept = selection.alpha
    by_alpha = [Predicted.of(pool.probabilities[at[alpha]]) for alpha in (0.0, 0.5, 1.0)]
    checks = {
        name: Check.of(neighbours, by_alpha[a], by_alpha[b], classes).to_dict()
        for name, a, b in (("half", 0, 1), ("all", 0, 2), ("all against half", 1, 2))
    }
    return {
        "zero_shot": accuracy[0], "points": [round(value - accuracy[0], 2) for value in accuracy], "errors": errors,
        "kept": kept, "checks": checks, "labels": of_the_pool(pool, hidden, at[kept]),
    }  # fmt: skip


def of_the_pool(pool: Any, hidden: np.ndarray, kept: int) -> dict[str, float]:
    """Accuracy of the unlabeled images' labels in percent: zero-shot's, those of all of the adaptation, refined, and
    refined with answers (of the images that have none). `kept`: place of the kept share of the way."""
    from dataclasses import replace

    two = replace(pool, probabilities=pool.probabilities[[0, kept]])
    device, real = torch.device("cpu"), hidden >= 0
    refined = refined_labels(two, device)

    def right(labels: torch.Tensor, of: np.ndarray) -> float:
        return round(100 * float((labels.numpy() == hidden)[of].mean()), 2)

    rows = {"zero_shot": right(refined.zero_shot.labels, real), "refined": right(refined.labels.labels, real)}
    rows["adapted"] = right(Predicted.of(pool.probabilities[-1]).labels, real)
    rng = np.random.default_rng(0)
    for count in ANSWERS:
        gains = []
        for _ in range(DRAWS if count < len(hidden) / 2 else 0):
            asked = rng.choice(len(hidden), count, replace=False)
            answers = {int(pool.numbers[place]): int(hidden[place]) for place in asked}
            taught = refined_labels(two, device, answers)
            rest = real.copy()
            rest[asked] = False
            gains.append(right(taught.labels.labels, rest) - right(taught.zero_shot.labels, rest))
        if gains:
            rows[f"gain of {count} answers"] = round(float(np.mean(gains)), 2)
    return rows


def truth(shards: str, split: str, labels: np.ndarray) -> np.ndarray:
    """Class numbers in the order of the split's samples, from the files' names."""
    reader = ShardReader(shards, split)
    return labels[[int(Path(reader.description(sample)["source"]).stem) for sample in range(len(reader))]]


def weights(labels: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Of the test images, so that classes are as frequent as among the unlabeled ones; sum 1."""
    weight = (counts / np.maximum(np.bincount(labels, minlength=len(counts)), 1))[labels]
    return weight / weight.sum()


def top1(predicted: np.ndarray, labels: np.ndarray, counts: np.ndarray) -> float:
    return round(float(100 * (weights(labels, counts) * (predicted == labels)).sum()), 2)


def paired_error(before: np.ndarray, after: np.ndarray, labels: np.ndarray, counts: np.ndarray) -> float:
    """Standard error of the difference, in points."""
    weight, change = weights(labels, counts), (after == labels).astype(float) - (before == labels)
    return round(float(100 * np.sqrt((weight**2 * (change - (weight * change).sum()) ** 2).sum())), 2)


def summary(row: dict[str, Any]) -> str:
    points, half, pool = row["points"], row["points"][ALPHAS.index(0.5)], row["labels"]
    return (
        f"{row['task']:<10}{row['variant']:<6}{row['setting']:<8}{row['seed']} zero-shot {row['zero_shot']:5.1f} "
        f"half {half:+5.1f} all {points[-1]:+5.1f} best {max(points):+5.1f} | labels: adapted "
        f"{pool['adapted'] - pool['zero_shot']:+.1f} refined {pool['refined'] - pool['zero_shot']:+.1f} answers "
        f"{pool.get('gain of 50 answers', 0):+.1f} {pool.get('gain of 200 answers', 0):+.1f} | kept {row['kept']:g} | "
        f"{row['train_seconds']:.0f} s"
    )


if __name__ == "__main__":
    main()
