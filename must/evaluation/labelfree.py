"""What can be said about a model without labels: agreement, confidence, class balance, scores of the literature.

None of these is an accuracy. docs/evaluation.md says how well they told good adaptations from bad ones.
"""

import math

import numpy as np

from must.evaluation.result import Compared, ModelFigures
from must.evaluation.scores import Scores

CONFIDENT = 0.7
"""Probability from which a prediction counts as confident: the method's threshold for pseudo-labels."""
ITERATIONS = 10  # more change nothing in the third digit
SMOOTHING = 2.0
"""Images that a class is taken to have been counted on already, with the adapted model's overall reliability."""


def label_free(scores: Scores) -> ModelFigures:
    """Label-free figures of one model. N images, K classes.

    - confidence: mean probability of the predicted class; confident: share of images above 0.7.
    - histogram: predicted images a class [K]; effective_classes: exp of its entropy, K when all are equally frequent.
    - mutual_information: H(mean p) - mean H(p) over log K, 0..1: sure of each image, balanced over all (Bridle et al.
      1991, "Unsupervised classifiers, mutual information and phantom targets").
    - nuclear_norm: sum of the singular values of the matrix of probabilities [N, K] over its largest possible value
      sqrt(N min(N, K)), 0..1 (Deng et al. 2023, "Confidence and dispersity speak", arXiv 2302.01094).
    """
    images, classes = len(scores.top), len(scores.probability_sum)
    histogram = np.bincount(scores.prediction, minlength=classes)
    mean = scores.probability_sum / images
    eigenvalues = np.clip(np.linalg.eigvalsh(scores.gram), 0, None)
    return ModelFigures(
        confidence=float(scores.confidence.mean(dtype=np.float64)),
        confident=float((scores.confidence > CONFIDENT).mean()),
        histogram=histogram.tolist(),
        effective_classes=float(np.exp(entropy(histogram / images))),
        mutual_information=(entropy(mean) - float(scores.entropy.mean(dtype=np.float64))) / math.log(classes),
        nuclear_norm=float(np.sqrt(eigenvalues).sum() / math.sqrt(images * min(images, classes))),
    )


def compare(before: Scores, after: Scores) -> Compared:
    """Label-free figures of two models on the same images.

    - estimated_change: of accuracy, where the first model is calibrated (see there).
    - confidence_change: difference of the mean confidences, which for a model that was not trained on its own guesses
      estimates the change of accuracy (Guillory et al. 2021, arXiv 2107.03315); after self-training it does not.
    - agreement: share of equal predictions.
    - agreement_confident: the same among images of which the first model is confident; None if there are none.
    - histogram_distance: total variation between the predicted class histograms, 0 (equal) to 1 (disjoint).
    - vanished: class numbers that the first model predicts for at least 1% of the images and the second for fewer
      than a tenth of that; dominant: class numbers that took more than three times their former share, and over 20%.
    """
    classes, images = len(before.probability_sum), len(before.top)
    same = before.prediction == after.prediction
    confident = before.confidence > CONFIDENT
    old = np.bincount(before.prediction, minlength=classes) / images
    new = np.bincount(after.prediction, minlength=classes) / images
    gain = after.confidence.mean(dtype=np.float64) - before.confidence.mean(dtype=np.float64)
    return Compared(
        estimated_change=estimated_change(before, after),
        confidence_change=float(gain),
        agreement=float(same.mean()),
        agreement_confident=float(same[confident].mean()) if confident.any() else None,
        histogram_distance=float(np.abs(old - new).sum() / 2),
        vanished=np.flatnonzero((old >= 0.01) & (new < old / 10)).tolist(),
        dominant=np.flatnonzero((new > 3 * old) & (new > 0.2)).tolist(),
    )


def entropy(share: np.ndarray) -> float:
    """Entropy in nats."""
    positive = share[share > 0]
    return float(-(positive * np.log(positive)).sum())


def estimated_change(before: Scores, after: Scores) -> float:
    """The estimated change of accuracy, a fraction: the adapted model's minus the zero-shot model's.

    Who was right about the images that changed class? The zero-shot model's probabilities are taken for what they say
    (CLIP's are roughly calibrated: Minderer et al. 2021, arXiv 2106.07998). The adapted model's are not, because
    self-training makes a model sure of itself whatever it has learned. Its predictions are treated as those of an
    annotator whose mistakes are unknown (Dawid & Skene 1979, "Maximum likelihood estimation of observer error-rates
    using the EM algorithm"): how often it says a when zero-shot's probabilities say y is counted over all images, and
    counts as its reliability about y. N images, K classes, C = min(5, K) + 1 candidate classes an image.

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
