"""Methods that use labels, for comparison: how many labelled images give the same accuracy as a label-free result.

    python -m benchmarks.few_shot --baseline classifier.safetensors --shards shards/ --split test

Prints top-1 of both methods on the evaluated split, for each number of labelled images per class, and of the zero-shot
model. Both use the zero-shot model's frozen features of a few labelled images per class:

- a linear probe: logistic regression on unit features (Radford et al. 2021, arXiv 2103.00020, section 3.2);
- Tip-Adapter without training: a cache of labelled features whose affinity is added to the zero-shot logits
  (Zhang et al. 2022, arXiv 2207.09519, eq. 2-6).

N images, D embedding, K classes, M support images. Features are float32 unit vectors.
"""

import argparse
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from must.base.parameters import require
from must.config import EvaluateConfig
from must.data.augment.normalize import normalize
from must.data.loading.loader import EvalSource
from must.evaluation.evaluate import load_baseline
from must.evaluation.scores import NO_LABEL, label_numbers
from must.method.distributed.process_group import pick_device
from must.method.model.bundle import Bundle
from must.method.model.description import get_preprocess

ALPHA, BETA = 1.0, 5.5
"""Tip-Adapter's weight of the cache and sharpness of the affinity, as published; tuning them would need more labels."""
REGULARIZATION = (0.1, 1.0, 10.0, 100.0)
"""Candidates for the probe's inverse regularization, chosen by cross-validation on the support images."""


class Features(NamedTuple):
    features: np.ndarray  # float32 [N, D], unit vectors
    labels: np.ndarray  # int64 [N]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--baseline", required=True, help="classifier file, or a bundle")
    parser.add_argument("--shards", required=True)
    parser.add_argument("--split", default="test", help="that is evaluated [%(default)s]")
    parser.add_argument("--few-shot-split", default="train", help="that labelled images are drawn from [%(default)s]")
    parser.add_argument("--shots", type=int, nargs="+", default=[1, 2, 4, 8, 16], help="images a class [%(default)s]")
    parser.add_argument("--seeds", type=int, default=3, help="draws to average over [%(default)s]")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--workers", type=int, default=0)
    options = parser.parse_args()
    results = few_shot(load_baseline(options.baseline), options)
    print(f"zero-shot {100 * results['zero-shot']:.1f}%")
    for name, rows in results["methods"].items():
        cells = (f"{row['shots']}: {100 * row['top1']:.1f}% +- {100 * row['spread']:.1f}" for row in rows)
        print(f"{name}, labelled images a class: {', '.join(cells)}")


def few_shot(baseline: Bundle, options: argparse.Namespace) -> dict[str, Any]:
    """{"zero-shot": top-1, "methods": {name: [{"shots", "images", "top1", "spread"}]}}; `top1` is the mean and `spread`
    the standard deviation over draws of the support images.

    Raises:
        ValueError: the splits are the same, one has no labels, or no class has enough of them.
    """
    require(options.split != options.few_shot_split, "--few-shot-split: is the split that is evaluated")
    support = labelled_features(options, options.few_shot_split, baseline)
    test = labelled_features(options, options.split, baseline)
    classifier = baseline.model.classifier.detach().float().cpu().numpy()
    counts = np.bincount(support.labels, minlength=classifier.shape[1])
    shots = sorted({number for number in options.shots if 0 < number <= counts.max()})
    require(bool(shots), f"--shots: split '{options.few_shot_split}' has at most {counts.max()} images of a class")
    methods: dict[str, list[dict[str, Any]]] = {"linear probe": [], "Tip-Adapter": []}
    for number in shots:
        accuracy: dict[str, list[float]] = {name: [] for name in methods}
        for seed in range(options.seeds):
            rows = draw(support.labels, number, seed)
            subset = Features(support.features[rows], support.labels[rows])
            predictions = {
                "linear probe": linear_probe(subset, test.features, seed),
                "Tip-Adapter": tip_adapter(subset, test.features, classifier, baseline.description.logit_factor),
            }
            for name, predicted in predictions.items():
                accuracy[name].append(float((predicted == test.labels).mean()))
        for name, values in accuracy.items():
            spread = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
            row = {"shots": number, "images": len(rows), "top1": float(np.mean(values)), "spread": spread}
            methods[name].append(row)
    zero_shot = (test.features @ classifier).argmax(axis=1)
    return {"zero-shot": float((zero_shot == test.labels).mean()), "methods": methods}


def labelled_features(options: argparse.Namespace, split: str, baseline: Bundle) -> Features:
    """The labelled images' features, in the order of sample numbers."""
    description, device = baseline.description, pick_device(options.device)
    config = EvaluateConfig(model="-", shards=options.shards, output="-", workers=options.workers, batch_size=50)
    source = EvalSource.open(config, get_preprocess(description), 0, 1, split)
    lookup = {name: number for number, name in enumerate(description.classes)}
    visual = baseline.model.visual.to(device)
    numbers, features, labels = [], [], []
    with torch.inference_mode():
        for batch in source:
            known = label_numbers(batch.labels, lookup, batch.sources)
            keep = known != NO_LABEL
            if keep.any():
                images = normalize(batch.pixels[torch.from_numpy(keep)].to(device), source.preprocess)
                features.append(F.normalize(visual(images).float(), dim=-1).cpu().numpy())
                labels.append(known[keep])
                numbers.append(batch.samples.numpy()[keep])
    require(bool(numbers), f"split '{split}' of {options.shards} has no labels; both splits need some")
    order = np.argsort(np.concatenate(numbers))
    return Features(np.concatenate(features)[order], np.concatenate(labels)[order])


def draw(labels: np.ndarray, shots: int, seed: int) -> np.ndarray:
    """Row numbers of `shots` random images of each class, or of all images of a smaller class."""
    generator = np.random.default_rng((seed, shots))
    rows = [generator.permutation(np.flatnonzero(labels == number))[:shots] for number in np.unique(labels)]
    return np.concatenate(rows)


def linear_probe(support: Features, features: np.ndarray, seed: int) -> np.ndarray:
    """Class numbers [N]. The regularization is cross-validated on the support images if each class has two."""
    known = np.unique(support.labels)
    smallest = int(np.bincount(support.labels)[known].min())
    if len(known) < 2:
        return np.full(len(features), support.labels[0])
    best = REGULARIZATION[-2]
    if smallest >= 2:
        fold = fold_numbers(support.labels, min(smallest, 4), seed)
        best = max(REGULARIZATION, key=lambda c: cross_validation(support, fold, c))
    return logistic_regression(support, best, features)


def cross_validation(support: Features, fold: np.ndarray, c: float) -> float:
    """Mean accuracy on the folds, each predicted from the others."""
    accuracy = []
    for number in range(fold.max() + 1):
        train, test = (
            Features(support.features[rows], support.labels[rows]) for rows in (fold != number, fold == number)
        )
        accuracy.append((logistic_regression(train, c, test.features) == test.labels).mean())
    return float(np.mean(accuracy))


def fold_numbers(labels: np.ndarray, folds: int, seed: int) -> np.ndarray:
    """The fold of each image, int64 [M]; every class is spread evenly over the folds."""
    generator, numbers = np.random.default_rng(seed), np.zeros(len(labels), np.int64)
    for label in np.unique(labels):
        rows = generator.permutation(np.flatnonzero(labels == label))
        numbers[rows] = np.arange(len(rows)) % folds
    return numbers


def logistic_regression(support: Features, c: float, features: np.ndarray) -> np.ndarray:
    """Class numbers [N] by the minimum of c x (summed cross entropy) + |W|^2 / 2, the intercept not penalised."""
    known, target = np.unique(support.labels, return_inverse=True)
    x, y = torch.from_numpy(support.features), torch.from_numpy(target)
    weight = torch.zeros(x.shape[1], len(known), requires_grad=True)
    bias = torch.zeros(len(known), requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [weight, bias], max_iter=500, tolerance_grad=1e-5, tolerance_change=1e-9, line_search_fn="strong_wolfe"
    )

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = F.cross_entropy(x @ weight + bias, y) + weight.square().sum() / (2 * c * len(x))
        value.backward()
        return value

    optimizer.step(loss)
    with torch.no_grad():
        return known[(torch.from_numpy(features) @ weight + bias).argmax(dim=1).numpy()]


def tip_adapter(support: Features, features: np.ndarray, classifier: np.ndarray, logit_factor: float) -> np.ndarray:
    """Class numbers [N] by logit factor x cosine + alpha exp(-beta (1 - affinity)) labels; classifier [D, K]."""
    one_hot = np.eye(classifier.shape[1], dtype=np.float32)[support.labels]
    affinity = features @ support.features.T
    cache = np.exp(-BETA * (1 - affinity)) @ one_hot
    return (logit_factor * features @ classifier + ALPHA * cache).argmax(axis=1)


if __name__ == "__main__":
    main()
