"""Neighbour mutual information: labels that are right are shared by images that look alike.

It ranks models of one task; whether to accept one in zero-shot's place is for the ladder to say. N images, K classes.
"""

import numpy as np


def neighbour_information(labels: np.ndarray, neighbours: np.ndarray, classes: int) -> float:
    """Mutual information, in nats, of the classes of two look-alikes: sum P log(P / (P_a P_b)), P [K, K] the share of
    neighbour pairs with classes a and b, made symmetric. Not normalised: a score relative to the classes' entropy
    rewards a model that merges classes."""
    pairs = labels[:, None] * classes + labels[neighbours]
    joint = np.bincount(pairs.ravel(), minlength=classes * classes).reshape(classes, classes) / max(pairs.size, 1)
    joint = (joint + joint.T) / 2
    single = joint.sum(axis=1)
    expected = single[:, None] * single[None, :]
    there = joint > 0
    return float((joint[there] * np.log(joint[there] / expected[there])).sum())


def renamed(before: np.ndarray, after: np.ndarray, classes: int) -> float:
    """Share of images that would keep their class under a renaming of the classes, less the share that does.

    More than a few percent means that the adapted model calls one class by another's name: self-training cannot know
    which name is right, zero-shot does. The renaming is found by exchanging two names for as long as that helps, which
    undoes any cycle of names.
    """
    together = np.bincount(before * classes + after, minlength=classes * classes).reshape(classes, classes)
    name = np.arange(classes)  # of the zero-shot class, in the adapted model's words
    while classes > 1:
        renamed = together[:, name]
        own = np.diagonal(renamed)
        gain = renamed + renamed.T - own[:, None] - own[None, :]
        first, second = np.unravel_index(gain.argmax(), gain.shape)
        if gain[first, second] <= 0:
            break
        name[[first, second]] = name[[second, first]]
    return float((together[np.arange(classes), name].sum() - np.trace(together)) / max(len(before), 1))
