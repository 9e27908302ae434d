"""What can be said about a model without labels: agreement, confidence, class balance, scores of the literature.

None of these is an accuracy. docs/evaluation.md says how well they told good adaptations from bad ones.
"""

import math

import numpy as np

from must.evaluation.result import Compared, ModelFigures
from must.evaluation.scores import Scores

CONFIDENT = 0.7
"""Probability from which a prediction counts as confident: the method's threshold for pseudo-labels."""


def label_free(scores: Scores) -> ModelFigures:
    """Label-free figures of one model. N images, K classes.

    - confidence: mean probability of the predicted class; confident: share of images above 0.7.
    - histogram: predicted images a class [K]; effective_classes: exp of its entropy, K when all are equally frequent.
    - mutual_information: H(mean p) - mean H(p) over log K, 0..1: sure of each image, balanced over all (Bridle et al.
      1991, "Unsupervised classifiers, mutual information and phantom targets").
    """
    images, classes = len(scores.top), len(scores.probability_sum)
    histogram = np.bincount(scores.prediction, minlength=classes)
    mean = scores.probability_sum / images
    return ModelFigures(
        confidence=float(scores.confidence.mean(dtype=np.float64)),
        confident=float((scores.confidence > CONFIDENT).mean()),
        histogram=histogram.tolist(),
        effective_classes=float(np.exp(entropy(histogram / images))),
        mutual_information=(entropy(mean) - float(scores.entropy.mean(dtype=np.float64))) / math.log(classes),
    )


def compare(before: Scores, after: Scores) -> Compared:
    """Label-free figures of two models on the same images.

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
    return Compared(
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
