"""Rivals that use labels: how many labelled images is the label-free result worth?

Both work on the zero-shot model's frozen features of a few labelled images a class:

- a linear probe: logistic regression on unit features (Radford et al. 2021, arXiv 2103.00020, section 3.2);
- Tip-Adapter without training: a cache of labelled features whose affinity is added to the zero-shot logits
  (Zhang et al. 2022, arXiv 2207.09519, eq. 2-6).

N images, D embedding, K classes, M support images. Features are float32 unit vectors.
"""

from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from must.base.parameters import require
from must.config import EvaluateConfig
from must.data.augment.normalize import normalize
from must.data.loading.loader import EvalSource
from must.evaluation.scores import NO_LABEL, label_numbers
from must.method.distributed.process_group import World
from must.method.model.bundle import Bundle, preprocess_of

ALPHA, BETA = 1.0, 5.5
"""Tip-Adapter's weight of the cache and sharpness of the affinity, as published; tuning them would need more labels."""
REGULARIZATION = (0.1, 1.0, 10.0, 100.0)
"""Candidates for the probe's inverse regularization, chosen by cross-validation on the support images."""


class Features(NamedTuple):
    features: np.ndarray  # float32 [N, D], unit vectors
    labels: np.ndarray  # int64 [N]


def few_shot(config: EvaluateConfig, baseline: Bundle, here: World) -> dict[str, Any]:
    """Top-1 on the evaluated split of both rivals, for each number of labelled images a class.

    Returns {"split", "seeds", "methods": [{"name", "rows": [{"shots", "images", "top1", "spread"}]}]}; `top1` is the
    mean and `spread` the standard deviation over draws of the support images.

    Raises:
        ValueError: one of the splits has no labels, or no class has enough of them.
    """
    support = labelled_features(config, config.few_shot_split, baseline, here)
    test = labelled_features(config, config.split, baseline, here)
    classifier = baseline.model.classifier.detach().float().cpu().numpy()
    classes = classifier.shape[1]
    counts = np.bincount(support.labels, minlength=classes)
    require(
        int(counts.max()) >= min(config.few_shot),
        f"--few-shot-split {config.few_shot_split}: has at most {counts.max()} labelled images of a class, fewer than "
        f"--few-shot {min(config.few_shot)}",
    )
    results: dict[str, list[dict[str, Any]]] = {"linear probe": [], "Tip-Adapter": []}
    for shots in sorted(set(config.few_shot)):
        if shots > counts.max():
            continue
        accuracy: dict[str, list[float]] = {name: [] for name in results}
        for seed in range(config.few_shot_seeds):
            rows = draw(support.labels, shots, seed)
            few = Features(support.features[rows], support.labels[rows])
            predictions = {
                "linear probe": linear_probe(few, test.features, seed),
                "Tip-Adapter": tip_adapter(few, test.features, classifier, baseline.description.logit_factor),
            }
            for name, predicted in predictions.items():
                accuracy[name].append(float((predicted == test.labels).mean()))
        for name, values in accuracy.items():
            spread = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
            results[name].append(
                {"shots": shots, "images": len(rows), "top1": float(np.mean(values)), "spread": spread}
            )
    methods = [{"name": name, "rows": rows} for name, rows in results.items()]
    return {"split": config.few_shot_split, "seeds": config.few_shot_seeds, "methods": methods}


def labelled_features(config: EvaluateConfig, split: str, baseline: Bundle, here: World) -> Features:
    """The labelled images' features, computed in parts by all processes, in the order of sample numbers."""
    description = baseline.description
    source = EvalSource.of(config, preprocess_of(description), here.rank, here.size, split)
    lookup = {name: number for number, name in enumerate(description.classes)}
    visual = baseline.model.visual.to(here.device)
    numbers, features, labels, problem = [], [], [], ""
    with torch.inference_mode():
        for batch in source:
            try:
                known = label_numbers(batch.labels, lookup, batch.sources)
            except ValueError as error:
                problem = str(error)
                break
            keep = known != NO_LABEL
            if keep.any():
                images = normalize(batch.pixels[torch.from_numpy(keep)].to(here.device), source.preprocess)
                features.append(F.normalize(visual(images).float(), dim=-1).cpu().numpy())
                labels.append(known[keep])
                numbers.append(batch.samples.numpy()[keep])
    parts = here.gather((numbers, features, labels, problem))
    for *_, said in parts:
        require(not said, said)
    numbers, features, labels = ([item for part in parts for item in part[i]] for i in range(3))
    require(
        bool(numbers),
        f"--few-shot needs labels; split '{split}' of {config.shards} has none. The evaluated split (--split) and the "
        "one that the labelled images are taken from (--few-shot-split) both need some",
    )
    order = np.argsort(np.concatenate(numbers))
    return Features(np.concatenate(features)[order], np.concatenate(labels)[order])


def draw(labels: np.ndarray, shots: int, seed: int) -> np.ndarray:
    """Row numbers of `shots` random images of each class, of all images where a class has fewer."""
    generator = np.random.default_rng((seed, shots))
    rows = [generator.permutation(np.flatnonzero(labels == number))[:shots] for number in np.unique(labels)]
    return np.concatenate(rows)


def linear_probe(few: Features, features: np.ndarray, seed: int) -> np.ndarray:
    """Class numbers [N]. The regularization is cross-validated on the support images where each class has two."""
    known = np.unique(few.labels)
    least = int(np.bincount(few.labels)[known].min())
    if len(known) < 2:
        return np.full(len(features), few.labels[0])
    best = REGULARIZATION[-2]
    if least >= 2:
        fold = fold_numbers(few.labels, min(least, 4), seed)
        best = max(REGULARIZATION, key=lambda c: cross_validated(few, fold, c))
    return logistic_regression(few, best, features)


def cross_validated(few: Features, fold: np.ndarray, c: float) -> float:
    """Mean accuracy on the folds, each predicted from the others."""
    accuracy = []
    for number in range(fold.max() + 1):
        inside, outside = (Features(few.features[rows], few.labels[rows]) for rows in (fold != number, fold == number))
        accuracy.append((logistic_regression(inside, c, outside.features) == outside.labels).mean())
    return float(np.mean(accuracy))


def fold_numbers(labels: np.ndarray, folds: int, seed: int) -> np.ndarray:
    """The fold of each image, int64 [M]; every class is spread evenly over the folds."""
    generator, numbers = np.random.default_rng(seed), np.zeros(len(labels), np.int64)
    for label in np.unique(labels):
        rows = generator.permutation(np.flatnonzero(labels == label))
        numbers[rows] = np.arange(len(rows)) % folds
    return numbers


def logistic_regression(few: Features, c: float, features: np.ndarray) -> np.ndarray:
    """Class numbers [N] by the minimum of c x (summed cross entropy) + |W|^2 / 2, the intercept not penalised."""
    known, target = np.unique(few.labels, return_inverse=True)
    x, y = torch.from_numpy(few.features), torch.from_numpy(target)
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


def tip_adapter(few: Features, features: np.ndarray, classifier: np.ndarray, logit_factor: float) -> np.ndarray:
    """Class numbers [N] by logit factor x cosine + alpha exp(-beta (1 - affinity)) labels; classifier [D, K]."""
    one_hot = np.eye(classifier.shape[1], dtype=np.float32)[few.labels]
    affinity = features @ few.features.T
    cache = np.exp(-BETA * (1 - affinity)) @ one_hot
    return (logit_factor * features @ classifier + ALPHA * cache).argmax(axis=1)
