"""Effect of a person's answers, which are simulated from the true labels of the bundled digits.

    python benchmarks/review.py [--epochs 0] [--draws 20]

Prepares `must review` on the 1,097 unlabeled digits, with the zero-shot model or with a model that is first trained for
`--epochs`. Then, for each number of answers and `--draws` orders of the images: how many refined labels of the images
without answers change, their accuracy before and after, the accuracy of the refined labels as estimated from the
answers (mean and width of the interval), and the share of draws whose interval contains the true accuracy.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
from pathlib import Path

import numpy as np
import torch

import must
from must.answers.accuracy import share
from must.answers.review import draw_order
from must.api.demo import CLASSES, find_assets, load_digits
from must.config import ReviewConfig
from must.data.reader import ShardReader
from must.model.bundle import make_zero_shot_bundle, save_bundle
from must.model.classifier import load_text_classifier
from must.reviewing.prepare import Images, compute_review

ANSWERS = (10, 50, 200)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=0, help="of training before; 0: zero-shot alone")
    parser.add_argument("--draws", type=int, default=20, help="orders of the pictures")
    options = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    with tempfile.TemporaryDirectory() as folder:
        images, truth = prepare_images(Path(folder), options.epochs)
    usual = images.initial_labels
    right = (usual == truth).float().mean()
    print(f"{len(truth):,} images, {right:.1%} of the refined labels are right without answers")
    print(
        f"{'answers':>8}{'changed':>9}{'others right, before':>22}{'after':>8}{'measured':>11}{'width':>8}{'holds':>7}"
    )
    orders = [draw_order(usual.numpy(), seed) for seed in range(options.draws)]
    for count in ANSWERS:
        rows = np.array([simulate(images, truth, order[:count]) for order in orders])
        changed, before, after, measured, width, holds = rows.mean(0)
        line = f"{count:>8}{changed:>9.1f}{before:>22.1%}{after:>8.1%}{measured:>11.1%}{width:>8.1%}{holds:>7.0%}"
        print(line, flush=True)


def prepare_images(folder: Path, epochs: int) -> tuple[Images, torch.Tensor]:
    """(the images' data of `must review`, their true classes int64 [N])."""
    must.demo(output=folder)
    shards, classifier, model = (str(folder / name) for name in ("shards", "classifier.safetensors", "bundle"))
    must.shard(source=str(folder / "images/unlabeled"), output=shards, workers=1)
    must.classifier(classes=str(folder / "classes.yaml"), model=str(find_assets()), output=classifier)
    if epochs:
        must.train(shards=shards, classifier=classifier, output=model, epochs=epochs, workers=0)
    else:
        bundle = make_zero_shot_bundle(load_text_classifier(classifier))
        save_bundle(model, bundle.model, bundle.description)
    config = ReviewConfig(model=model, baseline=classifier, shards=shards, output=str(folder / "review"), workers=0)
    _, images = compute_review(config)
    reader, labels = ShardReader(shards, "train"), [CLASSES.index(label) for _, label in load_digits()["unlabeled"]]
    sources = [Path(reader.description(number)["source"]).stem for number in images.pool.numbers.tolist()]
    return images, torch.tensor([labels[int(source)] for source in sources])


def simulate(images: Images, truth: torch.Tensor, order: np.ndarray) -> list[float]:
    """The columns of one draw, in which the images `order` get answers."""
    answered = torch.from_numpy(order)
    labels, usual = images.refined(torch.stack([answered, truth[answered]])).argmax(1), images.initial_labels
    others = torch.ones(len(truth), dtype=torch.bool)
    others[answered] = False
    before, after = ((each == truth)[others].float().mean().item() for each in (usual, labels))
    estimate = share((usual == truth)[answered].numpy())
    holds = estimate.low <= (usual == truth).float().mean().item() <= estimate.high
    return [int((labels != usual)[others].sum()), before, after, estimate.value, estimate.high - estimate.low, holds]


if __name__ == "__main__":
    main()
