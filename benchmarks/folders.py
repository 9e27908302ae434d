"""How many pictures in a wrong folder `must adapt` lists (must/memory/folders.py), and how many of those listed are.

    python -m benchmarks.folders --tasks digits grainy slanted shapes --variants as-is tail

Moves 5 or 10 of 100 pictures into the folder of another class: of any, or of the one that the model confuses most with
theirs. Prints precision and recall, the mean of three draws, and the accuracy of CLIP alone. The tasks are those of
benchmarks/shifts, and shapes: drawn ones, of which the tower of the digits knows nothing."""

from __future__ import annotations

import argparse
import math
import time
from dataclasses import replace

import numpy as np
import torch
from PIL import Image, ImageDraw

from benchmarks.shifts.families import ROOT
from benchmarks.shifts.pretrain import pretrain
from benchmarks.shifts.run import prepare, read_pools, truth
from benchmarks.shifts.tasks import TOWERS, VARIANTS, Task, task, variant
from must.answers.answers_file import OPEN
from must.base.text import parse_csv
from must.memory.folders import find_misplaced
from must.memory.propagate import find_neighbours
from must.model.bundle import make_zero_shot_bundle
from must.model.classifier import load_text_classifier
from must.model.description import get_preprocess

DRAWS, SHARES = 3, (0.05, 0.1)
SHAPES = ("triangle", "square", "pentagon", "star")
KINDS = [f"{shape} {fill} {size}" for shape in SHAPES for fill in ("full", "line") for size in ("S", "L")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", default=["digits", "grainy", "slanted", "shapes"])
    parser.add_argument("--variants", nargs="+", default=["as-is"], choices=VARIANTS)
    options = parser.parse_args()
    for name in options.tasks:
        for kind in options.variants:
            measure(name, kind)


def measure(name: str, kind: str) -> None:
    if name in TOWERS:
        pretrain(TOWERS[name])
    data = variant(draw_shapes() if name == "shapes" else task(name), name, kind)
    shards, classifier = prepare(ROOT / "work" / f"{name}.{kind}.folders", data)
    bundle = make_zero_shot_bundle(load_text_classifier(classifier))
    pool = read_pools(bundle.model, shards, get_preprocess(bundle.description))[0]
    true, P = truth(shards, "train", data.hidden)[pool.numbers.numpy()], pool.probabilities.float().numpy()
    near, rows = find_neighbours(pool, torch.device("cpu")), np.arange(len(true))
    counts = f"{len(true)} pictures, {len(data.classes)} classes"
    print(f"{name} {kind}: {counts}, {100 * (P.argmax(1) == true).mean():.0f} of 100 right by CLIP alone")
    for share in SHARES:
        for similar in (False, True):
            found, began = [], time.perf_counter()
            for seed in range(DRAWS):
                given = plant(true, P, share, similar, np.random.default_rng(seed))
                names = [f"{data.classes[label]}/{row}.png" for row, label in enumerate(given)]
                said, people = np.full(len(true), OPEN), ["model"] * len(true)
                misplaced = find_misplaced(pool, near, said, names, rows, data.classes, people)
                assert misplaced
                listed = [int(row["image"].rpartition("/")[2][:-4]) for row in parse_csv(misplaced[1])]
                hits = (given != true)[listed].sum()
                found.append((hits / max(1, len(listed)), hits / (given != true).sum(), len(listed)))
            precision, recall, count = np.mean(found, 0)
            scores = f"precision {precision:.2f}, recall {recall:.2f}, {count:.0f} listed"
            seconds, into = (time.perf_counter() - began) / DRAWS, "a similar" if similar else "any other"
            print(f"  {100 * share:.0f} of 100 into {into} class: {scores}, {seconds:.1f} s", flush=True)


def plant(
    true: np.ndarray, probabilities: np.ndarray, share: float, similar: bool, chance: np.random.Generator
) -> np.ndarray:
    """Int64 [N]: folders of pictures with the classes `true` [N]. `probabilities`: [N, K], of the model."""
    given, there = true.copy(), np.unique(true)
    for row in chance.permutation(len(true))[: round(share * len(true))]:
        others = there[there != true[row]]
        means = probabilities[true == true[row]].mean(0)[others]
        given[row] = others[means.argmax()] if similar else chance.choice(others)
    return given


def draw_shapes(count: int = 60) -> Task:
    """So many of each kind: turned, moved, on noise."""
    chance, pictures, classes = np.random.default_rng(7), [], []
    for number in range(len(KINDS)):
        corners, full, large = 3 + number // 4, number // 2 % 2 == 0, number % 2
        for _ in range(count):
            image, radius = Image.new("L", (64, 64)), (24 if large else 10) * chance.uniform(0.8, 1.15)
            x, y, turn = *chance.uniform(26, 38, 2), chance.uniform(0, 2 * math.pi)
            points = 10 if corners == 6 else corners
            radii = [radius * (0.45 if corners == 6 and place % 2 else 1) for place in range(points)]
            angles = [turn + 2 * math.pi * place / points for place in range(points)]
            outline = [(x + r * math.cos(a), y + r * math.sin(a)) for r, a in zip(radii, angles, strict=True)]
            pen = ImageDraw.Draw(image)
            pen.polygon(outline, fill=255) if full else pen.line([*outline, outline[0]], fill=255, width=3)
            pixels = np.asarray(image.resize((32, 32), Image.Resampling.LANCZOS)) * chance.uniform(0.6, 1)
            pictures.append((pixels + chance.normal(0, 25, pixels.shape)).clip(0, 255).astype(np.uint8))
            classes.append(number)
    images, labels = np.stack(pictures), np.array(classes)
    return replace(
        task("digits"), classes=KINDS, templates=["a {}."], unlabeled=images, hidden=labels, test=images[:16],
        labels=labels[:16],
    )  # fmt: skip


if __name__ == "__main__":
    main()
