"""One run of the panel: trains with `--preset auto` or changed settings, and measures every alpha.

    python -m benchmarks.shifts.run --tasks signs kana --variants as-is few --seed 0 [--change epochs=48 --name longer]

A result is a JSON file under build/shifts/results; existing results are not computed again.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import shutil
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from must.method.select.check import Predicted, check_of
from must.method.select.features import extract_features
from must.method.select.propagate import nearest, whitened
from must.method.select.refine import refined_labels
from must.method.select.select import (
    ALPHAS,
    WeightPath,
    fully_adapted_bundle,
    load_adapted_and_zero_shot,
    zero_shot_network,
)
from PIL import Image

from benchmarks.shifts.families import ROOT
from benchmarks.shifts.pretrain import pretrain
from benchmarks.shifts.tasks import DEVELOPMENT, HELD_OUT, TOWERS, VARIANTS, Task, task, variant
from must.config import ClassifierConfig, ShardConfig, TrainConfig
from must.data.loading.loader import EvalSource
from must.data.loading.reader import ShardReader, open_reader
from must.data.shards.build import shard
from must.method.model.bundle import load_bundle, preprocess_of
from must.method.model.classifier import classifier
from must.method.train.trainer import train

DRAWS = 5  # of simulated answers
ANSWERS = (50, 200)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", default=DEVELOPMENT, choices=(*DEVELOPMENT, *HELD_OUT))
    parser.add_argument("--variants", nargs="+", default=["as-is"], choices=VARIANTS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--name", default="auto", help="of the settings, in the results")
    parser.add_argument("--change", nargs="+", default=[], metavar="SETTING=VALUE", help="of must train, over auto")
    options = parser.parse_args()
    torch.set_num_threads(1)
    change = {name: yaml.safe_load(value) for name, value in (item.split("=", 1) for item in options.change)}
    for variant_name in options.variants:
        for name in options.tasks:
            run_task(name, variant_name, options.seed, options.name, change)


def run_task(name: str, variant_name: str, seed: int, setting: str, change: dict[str, Any] | None = None) -> None:
    result = ROOT / "results" / f"{name}.{variant_name}.{setting}.{seed}.json"
    if result.exists():
        return
    if name in TOWERS:
        pretrain(TOWERS[name])
    logging.getLogger("must").setLevel(logging.ERROR)
    began = time.perf_counter()
    data = variant(task(name), name, variant_name, seed)
    shards, classifier_file = prepare(ROOT / "work" / f"{name}.{variant_name}.{seed}", data)
    folder = ROOT / "runs" / result.stem
    shutil.rmtree(folder, ignore_errors=True)  # of an interrupted run
    settings: dict[str, Any] = {"preset": "auto", "workers": 0, "device": "cpu", "tensorboard": False, "seed": seed}
    settings |= change or {}
    config = TrainConfig(shards=shards, classifier=classifier_file, output=str(folder), **settings)
    with contextlib.redirect_stdout(None):
        train(config)
    row = {"task": name, "variant": variant_name, "setting": setting, "seed": seed, "images": len(data.unlabeled)}
    trained = load_bundle(str(folder)).description.provenance.config
    row |= {"classes": len(data.classes), "epochs": trained["epochs"], "train_seconds": time.perf_counter() - began}
    row |= measure(str(folder), shards, classifier_file, data)
    shutil.rmtree(folder)
    result.parent.mkdir(parents=True, exist_ok=True)
    result.write_text(json.dumps(row))
    print(summary(row), flush=True)


def prepare(folder: Path, data: Task) -> tuple[str, str]:
    """(shards, classifier file) of a task."""
    shards, head = folder / "shards", folder / "classifier.safetensors"
    if not head.exists():
        for number, picture in enumerate(data.unlabeled):
            save(picture, folder / "unlabeled" / f"{number:05d}.png")
        for number, (picture, label) in enumerate(zip(data.test, data.labels, strict=True)):
            save(picture, folder / "test" / data.classes[label] / f"{number:05d}.png")
        (folder / "classes.yaml").write_text(yaml.safe_dump({"classes": data.classes, "templates": data.templates}))
        with contextlib.redirect_stdout(None):
            shard(ShardConfig(source=str(folder / "unlabeled"), test_source=str(folder / "test"), labels="folder",
                              output=str(shards), workers=1))  # fmt: skip
            classifier(ClassifierConfig(classes=str(folder / "classes.yaml"), model=data.model, output=str(head)))
    return str(shards), str(head)


def save(picture: np.ndarray, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture).save(path)


@torch.inference_mode()
def measure(folder: str, shards: str, classifier_file: str, data: Task) -> dict[str, Any]:
    """Accuracy of every alpha on the test images, the check, and labels of the unlabeled images."""
    bundle, zero_shot = load_adapted_and_zero_shot(fully_adapted_bundle(folder), classifier_file)
    frozen, device = zero_shot_network(bundle, zero_shot), torch.device("cpu")
    preprocess = preprocess_of(bundle.description)
    path = WeightPath(frozen, bundle.model.state_dict(), ALPHAS[1:])
    labels, hidden = truth(shards, "test", data.labels), truth(shards, "train", data.hidden)
    counts = np.bincount(data.hidden[data.hidden >= 0], minlength=len(data.classes))
    test = extract_features(frozen, EvalSource(open_reader(shards, "test"), preprocess, 256, 0), device, path)
    predicted = test.probabilities.argmax(-1).numpy()
    accuracy = [top1(classes, labels, counts) for classes in predicted]
    errors = [paired_error(predicted[0], classes, labels, counts) for classes in predicted]
    pool = extract_features(frozen, EvalSource(open_reader(shards, "train"), preprocess, 256, 0), device, path)
    classes, index = [str(k) for k in range(len(data.classes))], {alpha: i for i, alpha in enumerate(ALPHAS)}
    neighbours, _ = nearest(whitened(pool.features.float()))
    selection = load_bundle(folder).description.provenance.selection
    assert selection is not None
    alpha = selection.alpha
    by_alpha = [Predicted.of(pool.probabilities[index[share]]) for share in (0.0, 0.5, 1.0)]
    checks = {
        name: asdict(check_of(neighbours, by_alpha[a], by_alpha[b], classes))
        for name, a, b in (("half", 0, 1), ("all", 0, 2), ("all against half", 1, 2))
    }
    return {
        "zero_shot": accuracy[0], "points": [round(value - accuracy[0], 2) for value in accuracy], "errors": errors,
        "kept": alpha, "checks": checks, "labels": label_accuracy(pool, hidden, index[alpha]),
    }  # fmt: skip


def label_accuracy(pool: Any, hidden: np.ndarray, kept_index: int) -> dict[str, float]:
    """Accuracy of the unlabeled images' labels in percent: of the zero-shot model, the full adaptation, refined, and
    refined with answers (on the images without answers). `kept_index`: of the kept share in ALPHAS."""
    from dataclasses import replace

    both = replace(pool, probabilities=pool.probabilities[[0, kept_index]])
    device, real = torch.device("cpu"), hidden >= 0
    refined = refined_labels(both, device)

    def accuracy(labels: torch.Tensor, mask: np.ndarray) -> float:
        return round(100 * float((labels.numpy() == hidden)[mask].mean()), 2)

    rows = {"zero_shot": accuracy(refined.zero_shot.labels, real), "refined": accuracy(refined.labels.labels, real)}
    rows["adapted"] = accuracy(Predicted.of(pool.probabilities[-1]).labels, real)
    rng = np.random.default_rng(0)
    for count in ANSWERS:
        gains = []
        for _ in range(DRAWS if count < len(hidden) / 2 else 0):
            answered = rng.choice(len(hidden), count, replace=False)
            answers = {int(pool.numbers[i]): int(hidden[i]) for i in answered}
            with_answers = refined_labels(both, device, answers)
            others = real.copy()
            others[answered] = False
            gains.append(accuracy(with_answers.labels.labels, others) - accuracy(with_answers.zero_shot.labels, others))
        if gains:
            rows[f"gain of {count} answers"] = round(float(np.mean(gains)), 2)
    return rows


def truth(shards: str, split: str, labels: np.ndarray) -> np.ndarray:
    """Class numbers in the order of the split's samples, from the files' names."""
    reader = ShardReader(shards, split)
    return labels[[int(Path(reader.description(sample)["source"]).stem) for sample in range(len(reader))]]


def weights(labels: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Weights of the test images, which give classes the frequencies of the unlabeled images; sum 1."""
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
