"""One run of the panel: trains with `--preset auto` or changed settings, and measures models and memories.

    python -m benchmarks.shifts.run --tasks signs kana --variants as-is few --seed 0 [--change epochs=48 --name longer]
    python -m benchmarks.shifts.run --tasks digits --variants bursts --untrained

A result is a JSON file under build/shifts/results; existing results are not computed again.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import shutil
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
import yaml
from PIL import Image
from torch import Tensor

from benchmarks.shifts.families import ROOT
from benchmarks.shifts.pretrain import pretrain
from benchmarks.shifts.tasks import DEVELOPMENT, HELD_OUT, TOWERS, VARIANTS, Task, task, variant
from must.config import ClassifierConfig, ShardConfig, TrainConfig
from must.data.image.preprocess import Preprocess
from must.data.loader import EvalSource
from must.data.reader import ShardReader, open_reader
from must.data.shards.build import shard
from must.memory.features import Pool, read_features
from must.memory.measure import bound_none
from must.memory.predictions import Guesses, TopLabels
from must.memory.propagate import build_memory, find_neighbours, look_up
from must.model.bundle import interpolate, load_bundle, load_trained, make_zero_shot_bundle
from must.model.classifier import classifier, load_text_classifier
from must.model.description import get_preprocess
from must.model.distributed import World
from must.model.masked_vit import MaskedViT
from must.model.memory import Neighbours
from must.training.trainer import train

ALPHAS = (0.0, 0.5, 1.0)
UNTRAINED = "untrained"  # the name of these settings
DRAWS = 3  # of simulated answers at random
ANSWERS = (20, 50, 200)
FOLDS = 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", default=DEVELOPMENT, choices=(*DEVELOPMENT, *HELD_OUT))
    parser.add_argument("--variants", nargs="+", default=["as-is"], choices=VARIANTS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--name", default="auto", help="of the settings, in the results")
    parser.add_argument("--untrained", action="store_true", help="measure the zero-shot tower only, and its memory")
    parser.add_argument("--change", nargs="+", default=[], metavar="SETTING=VALUE", help="of must train, over auto")
    options = parser.parse_args()
    torch.set_num_threads(1)
    change = {name: yaml.safe_load(value) for name, value in (item.split("=", 1) for item in options.change)}
    setting = UNTRAINED if options.untrained else options.name
    for variant_name in options.variants:
        for name in options.tasks:
            run_task(name, variant_name, options.seed, setting, change)


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
    settings: dict[str, Any] = {"preset": "auto", "workers": 0, "device": "cpu", "seed": seed}
    settings |= change or {}
    row = {"task": name, "variant": variant_name, "setting": setting, "seed": seed, "images": len(data.unlabeled)}
    row |= {"classes": len(data.classes)}
    if setting != UNTRAINED:
        config = TrainConfig(shards=shards, classifier=classifier_file, output=str(folder), **settings)
        with contextlib.redirect_stdout(None):
            train(config)
        row |= {"epochs": load_bundle(str(folder)).description.provenance.config["epochs"]}
    row |= {"seconds": time.perf_counter() - began} | measure(str(folder), shards, classifier_file, data)
    shutil.rmtree(folder, ignore_errors=True)
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
    """The accuracy of each model on the test images: "present" with the classes' frequencies in the pool, "all" plain.

    Models: zero-shot, and the tower with each alpha; each without its memory, with it, and with answers in it."""
    zero_shot = make_zero_shot_bundle(load_text_classifier(classifier_file))
    trained = load_trained(folder) if Path(folder).exists() else zero_shot
    labels, hidden = truth(shards, "test", data.labels), torch.from_numpy(truth(shards, "train", data.hidden))
    counts = np.bincount(data.hidden[data.hidden >= 0], minlength=len(data.classes))
    rows: dict[str, Any] = {"present": {}, "all": {}, "labels": {}}
    for alpha in ALPHAS if trained is not zero_shot else ALPHAS[:1]:
        network = interpolate(zero_shot.model, trained.model, alpha)
        preprocess, cpu = get_preprocess(zero_shot.description), torch.device("cpu")
        pool, test = read_pools(network, shards, preprocess)
        near = find_neighbours(pool, cpu)
        P, values = test.probabilities.float(), test.vectors.float()
        shown, true = hidden[pool.numbers], labels[test.numbers.numpy()]  # of copies one

        def add(name: str, classes: Tensor, alpha: float = alpha, true: np.ndarray = true) -> None:
            correct = (classes.numpy() == true).astype(float)
            values = {"present": float((weights(true, counts) * correct).sum()), "all": float(correct.mean())}
            for kind, value in values.items():
                rows[kind].setdefault(f"{alpha:g} {name}", []).append(100 * value)

        add("tower", P.argmax(1))
        for count, order, answered in [
            (0, "", torch.zeros(0, dtype=torch.int64)),
            *draw_answers(pool, len(data.classes)),
        ]:
            memory, refined = build_memory(pool, torch.stack([answered, shown[answered]]), cpu, near=near)
            if memory.facts.none:
                memory.facts = replace(memory.facts, none_margin=find_margin(pool, near, answered, shown[answered]))
            add(f"{count} {order}".strip(), TopLabels.from_probabilities(memory(P, values)[0]).labels)
            if not count:
                real = shown >= 0
                right = (refined.argmax(1) == shown)[real].float().mean()
                rows["labels"][f"{alpha:g}"] = 100 * float(right)
    averages = {
        kind: {name: round(float(np.mean(v)), 2) for name, v in rows[kind].items()} for kind in ("present", "all")
    }
    return averages | {"labels": rows["labels"], "errors": round(100 / len(labels) ** 0.5, 2)}


def find_margin(pool: Pool, near: Neighbours, rows: Tensor, labels: Tensor) -> float:
    """For none of the classes, as `must refine` finds it, but by all of the answers."""
    predicted = torch.empty(len(rows), pool.probabilities.shape[1])
    for fold in range(FOLDS):
        mine = torch.arange(len(rows)) % FOLDS == fold
        memory, _ = build_memory(pool, torch.stack([rows[~mine], labels[~mine]]), torch.device("cpu"), near=near)
        predicted[mine] = look_up(memory, pool, rows[mine])[0]
    return bound_none(Guesses.of(predicted), labels)[0]


def read_pools(network: MaskedViT, shards: str, preprocess: Preprocess) -> list[Pool]:
    """Of the splits train and test, whose vectors are whitened as those of train."""
    with TemporaryDirectory() as folder:
        sources = [EvalSource(open_reader(shards, split), preprocess, 256, 0) for split in ("train", "test")]
        alone = World(0, 1, torch.device("cpu"))
        # Without `fit`, as there may be twice as many test images as others, which are then whitened as those of test.
        parts = [read_features(network, one, alone, folder, fit=one is sources[0]) for one in sources]
        return [part.pool(network) for part in parts]


def draw_answers(pool: Pool, classes: int) -> Iterator[tuple[int, str, Tensor]]:
    """(number, order, rows) of simulated answers at random."""
    images = len(pool.numbers)
    for count in ANSWERS:
        if count > images / 2:
            continue
        drawn = [np.random.default_rng(draw).permutation(images) for draw in range(DRAWS)]
        for order in drawn:
            yield count, "random", torch.from_numpy(order[:count])


def truth(shards: str, split: str, labels: np.ndarray) -> np.ndarray:
    """Class numbers in the order of the split's samples, from the files' names."""
    reader = ShardReader(shards, split)
    return labels[[int(Path(reader.description(sample)["source"]).stem) for sample in range(len(reader))]]


def weights(labels: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Weights of the test images, which give classes the frequencies of the unlabeled images; sum 1."""
    weight = (counts / np.maximum(np.bincount(labels, minlength=len(counts)), 1))[labels]
    return weight / weight.sum()


def summary(row: dict[str, Any]) -> str:
    present, every = row["present"], row["all"]
    names = ["0 0", "0 50 random", "0 200 random", "0.5 tower", "0.5 0", "1 0", "0.5 50 random", "0.5 200 random"]
    lines = []
    for values, shown in ((present, names), (every, ["0 0", "0.5 0"])):
        changes = {name: values[name] - values["0 tower"] for name in shown if name in values}
        lines.append(" ".join(f"{name}: {change:+.1f}" for name, change in changes.items()))
    return (
        f"{row['task']:<10}{row['variant']:<7}{row['setting']:<10}{row['seed']} zero-shot {present['0 tower']:.1f} | "
        f"{lines[0]} | all classes: {lines[1]} | {row['seconds']:.0f} s"
    )


if __name__ == "__main__":
    main()
