"""Trains and measures on every task and variant; what is there already is not done again.

    python -m benchmarks.shifts.run --tasks digits icons --variants as-is tail --settings auto [--images 14000]

Results are JSON files under build/shifts/results. For each run also everything that a choice without labels looks at
is kept (tokens of the frozen tower, predictions of every rung, on unlabeled and test images), so that other rules can
be tried without training again.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from PIL import Image

from benchmarks.shifts.packages import ROOT
from benchmarks.shifts.tasks import OLD, TASKS, VARIANTS, Task, task, variant
from must.base.parameters import load
from must.config import ClassifierConfig, ShardConfig, TrainConfig
from must.data.loading.loader import EvalSource
from must.data.loading.reader import open_reader
from must.data.shards.build import shard
from must.method.model.backbone import tower_shape
from must.method.model.bundle import load_bundle, preprocess_of, zero_shot_bundle
from must.method.model.classifier import classifier, load_text_classifier, save_classifier
from must.method.select.alpha import choose_alpha, shares_of
from must.method.select.ladder import RUNGS
from must.method.select.rung_predictions import predict_rungs
from must.method.train import auto, losses
from must.method.train import step as train_step
from must.method.train.auto import settings as auto_settings
from must.method.train.checkpoint import Checkpoints
from must.method.train.presets import preset
from must.method.train.trainer import train

LR = 0.004  # of the preset `digits`
SETTINGS: dict[str, dict[str, Any]] = {
    "digits": {},
    "lr-2": {"lr": LR / 2},
    "lr-4": {"lr": LR / 4},
    "imagenet": {"confidence_threshold": 0.7, "fairness_weight": 1, "mask_ratio": 0.3, "align_weight": 0.2},
    "sun397": {"confidence_threshold": 0.4, "fairness_weight": 0.2, "mask_ratio": 0.1, "align_weight": 1},
    "gtsrb": {"confidence_threshold": 0.3, "fairness_weight": 1, "mask_ratio": 0.5, "align_weight": 0.5},
}
SETTINGS |= {  # wrong on purpose: what must be refused
    "lr-x10": {"lr": 10 * LR},
    "unfair": {"fairness_weight": 0},
    "unfair-lr-x10": {"fairness_weight": 0, "lr": 10 * LR},
}
AUTO: dict[str, dict[str, Any]] = {  # `auto`, and with an option of training that it has or might have
    "auto": {},  # with the learning rate that it had when the panels were trained, whatever the classes
    "auto-classes": {},  # as it was then, for the classes
    "auto-gentle": {"mask_token": "mean", "loss_reduction": "batch"},  # as it is since
    "auto-given": {"class_prior": "given"},  # the true shares of the unlabeled images; one image of an absent class
    "auto-rough": {"class_prior": "given"},
    "auto-guess": {"class_prior": "given"},
    "auto-third": {},  # a third of the learning rate
    "auto-memory": {},  # a teacher that remembers three times as long
    "auto-pull": {},  # after every step the weights are drawn towards zero-shot's
    "auto-balance": {},  # the class balance is that of five batches
    "auto-unfair": {"fairness_weight": 0.2},
    "auto-aimless": {},  # every step of training is a random one
}
OCTAVES = {"auto-rough": 0.4, "auto-guess": 1.0}  # each share wrong by a factor of 1.3, or of 2, typically
SETTINGS |= AUTO
SNAPSHOTS = 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=TASKS)
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=VARIANTS)
    parser.add_argument("--settings", nargs="+", default=["digits"], choices=tuple(SETTINGS))
    parser.add_argument("--images", type=int, default=14_000, help="images to show, about; 0: auto's own length")
    parser.add_argument("--short", action="store_true", help="as in the second panel: no ten epochs, one snapshot")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    for setting in options.settings:
        for variant_name in options.variants:
            for name in options.tasks:
                one(name, variant_name, setting, options.images, options.seed, options.short)


def one(name: str, variant_name: str, setting: str, images: int, seed: int, short: bool = False) -> None:
    result = ROOT / "results" / f"{name}.{variant_name}.{setting}.{images}.{seed}.json"
    if result.exists():
        return
    started = time.perf_counter()
    made = variant(task(name), variant_name, seed)
    shards, names = prepared(ROOT / "work" / f"{name}.{variant_name}.{seed}", made)
    folder = ROOT / "runs" / result.stem
    shutil.rmtree(folder, ignore_errors=True)  # of a run that was ended in the middle
    if AUTO.get(setting, {}).get("class_prior") == "given":
        names = with_shares(names, folder, made, OCTAVES.get(setting, 0.0))
    config = configured(
        shards, names, folder, made, setting, images, seed, SNAPSHOTS if name in OLD and not short else 1
    )
    with contextlib.redirect_stdout(io.StringIO()), changed_method(setting):
        train(config)
    trained = time.perf_counter() - started
    row: dict[str, Any] = {"task": name, "variant": variant_name, "setting": setting, "images": images, "seed": seed}
    row |= measured(folder, shards, names, made, config) | {"train_seconds": trained}
    row["seconds"] = time.perf_counter() - started
    result.parent.mkdir(parents=True, exist_ok=True)
    result.write_text(json.dumps(row, indent=1))
    print(summary(row), flush=True)


def prepared(folder: Path, made: Task) -> tuple[str, str]:
    shards, names = folder / "shards", folder / "classifier.safetensors"
    if not names.exists():
        for number, picture in enumerate(made.unlabeled):
            save(picture, folder / "unlabeled" / f"{number:05d}.png")
        for number, (picture, label) in enumerate(zip(made.test, made.labels, strict=True)):
            save(picture, folder / "test" / made.classes[label] / f"{number:05d}.png")
        (folder / "classes.yaml").write_text(yaml.safe_dump({"classes": made.classes, "templates": made.templates}))
        with contextlib.redirect_stdout(io.StringIO()):
            shard(ShardConfig(source=str(folder / "unlabeled"), test_source=str(folder / "test"), labels="folder",
                              output=str(shards), workers=1))  # fmt: skip
            classifier(ClassifierConfig(classes=str(folder / "classes.yaml"), model=made.model, output=str(names)))
    return str(shards), str(names)


def with_shares(names: str, folder: Path, made: Task, octaves: float) -> str:
    """A copy of a classifier file, in the run's folder, that holds the shares of the unlabeled images' classes."""
    share = np.maximum(np.bincount(made.hidden[made.hidden >= 0], minlength=len(made.classes)), 1).astype(float)
    share *= 2 ** np.random.default_rng(0).normal(0, octaves, len(share))
    copy = folder / "classifier-with-shares.safetensors"
    save_classifier(replace(load_text_classifier(names), shares=tuple((share / share.sum()).tolist())), str(copy))
    return str(copy)


def save(picture: np.ndarray, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture).save(path)


def configured(
    shards: str, names: str, folder: Path, made: Task, setting: str, images: int, seed: int, snapshots: int = SNAPSHOTS
) -> TrainConfig:
    count, folder_of_model = len(made.unlabeled), made.model
    flags: dict[str, Any] = {"shards": shards, "classifier": names, "output": str(folder), "seed": seed}
    if setting in AUTO:
        shape = tower_shape(folder_of_model, "")
        fewer = auto.for_classes(len(made.classes), shape[0])  # the panel says how many images are shown
        with fewer_epochs(snapshots == 1 and images > 0):
            settings = auto_settings(count, len(made.classes), *shape, looked_at=images / fewer or auto.IMAGES)
        settings |= {"mask_token": "random", "loss_reduction": "global"} | AUTO[setting]
        part = 1 / 3 if setting == "auto-third" else 1.0
        if setting not in ("auto-classes", "auto-gentle", "auto-aimless"):
            part /= fewer
        settings |= {name: settings[name] * part for name in ("lr", "min_lr")}
        if setting == "auto-memory":
            longer = {name: 1 - (1 - settings[name]) / 3 for name in ("ema_decay_init", "ema_decay")}
            settings |= longer
        return finished(settings | {"select": "none"}, flags, count, snapshots)
    settings = preset("digits", folder_of_model) | {"select": "none"} | SETTINGS[setting]
    settings["batch_size"] = min(settings["batch_size"], max(8, count // 8))
    settings["epochs"] = max(1, round(images / (count // settings["batch_size"] * settings["batch_size"])))
    return finished(settings, flags, count, snapshots)


@contextlib.contextmanager
def changed_method(setting: str) -> Iterator[None]:
    """For `auto-pull`, `auto-aimless` and `auto-balance`, which are no settings of `must train`."""
    usual = train_step.step_if_finite, losses.fairness_loss
    if setting == "auto-pull":
        train_step.step_if_finite = Pull(usual[0])
    if setting == "auto-aimless":
        train_step.step_if_finite = wander
    if setting == "auto-balance":
        losses.fairness_loss = remembered_balance
    try:
        yield
    finally:
        train_step.step_if_finite, losses.fairness_loss = usual


class Pull:
    """After a step p <- p - strength x learning rate x (p - zero-shot's p)."""

    def __init__(self, usual: Callable[[Any], torch.Tensor], strength: float = 30.0) -> None:
        self.usual, self.strength, self.start = usual, strength, list[torch.Tensor]()

    @torch.no_grad()
    def __call__(self, optimizer: torch.optim.AdamW) -> torch.Tensor:
        weights = [(p, group["lr"]) for group in optimizer.param_groups for p in group["params"]]
        self.start = self.start or [p.detach().clone() for p, _ in weights]
        finite = self.usual(optimizer)
        for (p, lr), start in zip(weights, self.start, strict=True):
            p.lerp_(start, min(self.strength * lr, 1.0))
        return finite


@torch.no_grad()
def wander(optimizer: torch.optim.AdamW) -> torch.Tensor:
    """p <- p + learning rate x noise, where AdamW takes a step of about the learning rate."""
    for group in optimizer.param_groups:
        for p in group["params"]:
            p.add_(torch.randn_like(p), alpha=group["lr"])
    return torch.tensor(True)


def remembered_balance(
    balance: torch.Tensor, running: torch.Tensor | None, prior: torch.Tensor | None = None, memory: float = 0.8
) -> tuple[torch.Tensor, torch.Tensor]:
    mixed = balance if running is None else memory * running + (1 - memory) * balance
    weight = 1.0 if running is None else 1 / (1 - memory)
    return -weight * losses.prior_mean(losses.safe_log(mixed), prior), mixed.detach()


@contextlib.contextmanager
def fewer_epochs(fewer: bool) -> Iterator[None]:
    """The second panel shows as many images to 6,000 as to 1,400; auto itself would take at least ten epochs."""
    usual = auto.EPOCHS
    auto.EPOCHS = (2, 1000) if fewer else usual
    try:
        yield
    finally:
        auto.EPOCHS = usual


def finished(settings: dict[str, Any], flags: dict[str, Any], count: int, snapshots: int = SNAPSHOTS) -> TrainConfig:
    every = max(1, count // settings["batch_size"] * settings["epochs"] // snapshots)
    flags |= {"workers": 0, "device": "cpu", "keep_every": every, "checkpoint_every": every, "log_every": 50}
    return load(TrainConfig, flags, None, settings)


def measured(folder: Path, shards: str, names: str, made: Task, config: TrainConfig) -> dict[str, Any]:
    bundle = load_bundle(str(folder))
    zero_shot = zero_shot_bundle(load_text_classifier(names), logit_factor=config.logit_factor)
    preprocess = preprocess_of(bundle.description)
    hidden, classes = (
        truth(shards, "train", made),
        np.bincount(made.hidden[made.hidden >= 0], minlength=len(made.classes)),
    )
    labels = truth(shards, "test", made)
    row: dict[str, Any] = {"snapshots": []}
    checkpoints = Checkpoints(str(folder / "checkpoints"))
    for step in checkpoints.steps():
        state = torch.load(folder / "checkpoints" / f"step-{step:09d}.pt", weights_only=True)["teacher"]
        looks = {
            split: predict_rungs(zero_shot.model, state, EvalSource(open_reader(shards, split), preprocess, 256, 0),
                        torch.device("cpu"))
            for split in ("train", "test")
        }  # fmt: skip
        np.savez(
            folder / f"looks-{step:06d}.npz", tokens=looks["train"].tokens.astype(np.float16),
            probabilities=looks["train"].probabilities, labels=looks["train"].labels, hidden=hidden,
            test=looks["test"].labels, test_probabilities=looks["test"].probabilities,
            test_tokens=looks["test"].tokens.astype(np.float16), test_truth=labels, counts=classes,
        )  # fmt: skip
        (folder / "checkpoints" / f"step-{step:09d}.pt").unlink()
        accuracy = [top1(said, labels, classes) for said in looks["test"].labels]
        choice = choose_alpha(looks["train"], shares=shares_of(bundle.description))
        row["snapshots"].append({"step": step, "accuracy": accuracy, "choice": choice.to_dict()})
    last = row["snapshots"][-1]
    alphas = (0.0, *RUNGS)
    row |= {
        "zero_shot": last["accuracy"][0], "full": last["accuracy"][-1], "best": max(last["accuracy"]),
        "alpha": last["choice"]["alpha"], "kept": last["accuracy"][alphas.index(last["choice"]["alpha"])],
    }  # fmt: skip
    return row


def truth(shards: str, split: str, made: Task) -> np.ndarray:
    """Class numbers in the order of the split's samples, from the files' names."""
    from must.data.loading.reader import ShardReader

    reader = ShardReader(shards, split)
    numbers = [int(Path(reader.description(sample)["source"]).stem) for sample in range(len(reader))]
    return (made.hidden if split == "train" else made.labels)[numbers]


def top1(said: np.ndarray, labels: np.ndarray, counts: np.ndarray) -> float:
    """Percent of the test images, weighted so that classes are as frequent as among the unlabeled ones."""
    have = np.bincount(labels, minlength=len(counts))
    weight = (counts / np.maximum(have, 1))[labels]
    return round(float(100 * (weight * (said == labels)).sum() / weight.sum()), 2)


def summary(row: dict[str, Any]) -> str:
    return (
        f"{row['task']:<8}{row['variant']:<8}{row['setting']:<9} zero-shot {row['zero_shot']:5.1f}  "
        f"full {row['full'] - row['zero_shot']:+6.1f}  kept {row['kept'] - row['zero_shot']:+6.1f} at "
        f"{row['alpha']:.1f}  "
        f"best {row['best'] - row['zero_shot']:+5.1f}  {row['seconds']:.0f} s"
    )


if __name__ == "__main__":
    main()
