"""An estimate, without labels, of how much accuracy changed: who was right about the images that changed class?

The zero-shot model's probabilities are taken for what they say (CLIP's are roughly calibrated: Minderer et al. 2021,
arXiv 2106.07998). The adapted model's are not, because self-training makes a model sure of itself whatever it has
learned. Its predictions are treated as those of an annotator whose mistakes are unknown (Dawid & Skene 1979, "Maximum
likelihood estimation of observer error-rates using the EM algorithm"): how often it says a when zero-shot's
probabilities say y is counted over all images, and counts as its reliability about y. N images, K classes,
C = min(5, K) + 1 candidate classes an image.
"""

from __future__ import annotations

import numpy as np

from must.evaluation.scores import Scores

ITERATIONS = 10  # more change nothing in the third digit
SMOOTHING = 2.0
"""Images that a class is taken to have been counted on already, with the adapted model's overall reliability."""


def estimated_change(before: Scores, after: Scores) -> float:
    """The estimated change of accuracy, a fraction: the adapted model's minus the zero-shot model's.

    With p_i(y) the zero-shot probabilities and a_i the adapted prediction of image i: reliability R(a|y) from the
    expected counts sum_i r_i(y) [a_i = a], then beliefs r_i(y) proportional to p_i(y) R(a_i|y), in turns, starting from
    r = p. The estimate is the mean of r_i(a_i) - r_i(z_i), z_i being the zero-shot prediction: zero where nothing
    changed. docs/evaluation.md says how far off it was.
    """
    classes, said = len(before.probability_sum), after.prediction.astype(np.int64)
    candidate, prior = candidates(before, said, classes)
    key = candidate * classes + said[:, None]
    _, cell = np.unique(key, return_inverse=True)
    cell = cell.reshape(key.shape)
    same = candidate == said[:, None]
    belief = prior
    for _ in range(ITERATIONS):
        right = float((belief * same).sum(axis=1).mean())  # overall reliability
        usual = np.where(same, right, (1 - right) / max(classes - 1, 1))
        count = np.bincount(cell.ravel(), belief.ravel())[cell]
        total = np.bincount(candidate.ravel(), belief.ravel(), classes)[candidate]
        belief = prior * (count + SMOOTHING * usual) / (total + SMOOTHING)
        belief = belief / belief.sum(axis=1, keepdims=True)
    first = candidate == before.prediction[:, None]
    return float((belief * same).sum(axis=1).mean() - (belief * first).sum(axis=1).mean())


def candidates(before: Scores, said: np.ndarray, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """The classes that an image may have, int64 [N, C], and their zero-shot probabilities [N, C], adding up to 1.

    They are the five most probable ones and, where it is none of those, the adapted prediction with its share of the
    rest (else it is there twice, the second time with nothing).
    """
    top, value = before.top.astype(np.int64), before.top_probability.astype(np.float64)
    known = (top == said[:, None]).any(axis=1)
    rest = np.clip(1 - value.sum(axis=1), 0, None) / max(classes - top.shape[1], 1)
    candidate = np.concatenate([top, said[:, None]], axis=1)
    prior = np.concatenate([value, np.where(known, 0, np.maximum(rest, 1e-9))[:, None]], axis=1)
    return candidate, prior / prior.sum(axis=1, keepdims=True)
