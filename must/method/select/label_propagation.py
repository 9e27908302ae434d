"""Zero-shot's classes, refined by images that look alike: no training, no labels.

Two images are mutual look-alikes when each is among the other's nearest. Images that zero-shot is sure of keep what it
says; the others listen to their mutual look-alikes. N images, C neighbours an image, K classes.
"""

import numpy as np

from must.method.select.image_features import softmax
from must.method.select.ladder import SUREST
from must.method.select.neighbours import SAME, centred

SURE = 0.9  # probability above which an image keeps what zero-shot says
OWN, OTHERS = 0.5, 8.0  # weight of an image's own log-probabilities, and of its look-alikes' mean probabilities
ROUNDS = 20
ROWS = 512  # images whose look-alikes' probabilities are gathered at a time


def mutual(neighbours: np.ndarray) -> np.ndarray:
    """Bool [N, C]: whether the image is among its neighbour's neighbours too."""
    found = np.zeros(neighbours.shape, bool)
    for start in range(0, len(neighbours), ROWS):
        rows = np.arange(start, min(start + ROWS, len(neighbours)))
        found[rows] = (neighbours[neighbours[rows]] == rows[:, None, None]).any(axis=-1)
    return found


def recognised(probabilities: np.ndarray, neighbours: np.ndarray) -> float:
    """Of the quarter of the images that zero-shot is surest of: how often an image's look-alikes believe most in its
    very class, and would leave it as it is. The refinement listens to the same mean."""
    if not neighbours.size:
        return 0.0
    surest = np.argsort(-probabilities.max(axis=1), kind="stable")[: max(1, round(SUREST * len(probabilities)))]
    same = 0
    for start in range(0, len(surest), ROWS):
        rows = surest[start : start + ROWS]
        said = probabilities[neighbours[rows]].mean(axis=1).argmax(axis=1)
        same += int((said == probabilities[rows].argmax(axis=1)).sum())
    return same / len(surest)


def refined(probabilities: np.ndarray, neighbours: np.ndarray, rounds: int = ROUNDS) -> np.ndarray:
    """Float32 [N, K] from zero-shot's [N, K] and int [N, C] look-alikes.

    z_i <- normalise(p_i^0.5 exp(8 mean of z_j over i's mutual look-alikes j)), all images at once, 20 times, for images
    with max p_i of at most 0.9 that have mutual look-alikes; the others stay as they are. The result is sharper than
    its accuracy: take the class, not the probability, for what it says.
    """
    start = probabilities.astype(np.float32)
    if not neighbours.size:
        return start
    both = mutual(neighbours).astype(np.float32)
    count = both.sum(axis=1)
    moving = np.flatnonzero((start.max(axis=1) <= SURE) & (count > 0))
    share = both[moving] / count[moving, None]
    own = OWN * np.log(np.maximum(start[moving], 1e-12))
    now = start.copy()
    for _ in range(rounds):
        said = np.empty_like(own)
        for first in range(0, len(moving), ROWS):
            rows = slice(first, first + ROWS)
            said[rows] = np.einsum("nc,nck->nk", share[rows], now[neighbours[moving[rows]]])
        now[moving] = softmax(own + OTHERS * said)
    return now


def for_copies(values: np.ndarray, originals: np.ndarray, tokens: np.ndarray, same: float = SAME) -> np.ndarray:
    """`values` of the originals [M, ...] spread over all images [N, ...]: a copy has those of the first original that
    it resembles. `originals`: int [M], from `look_alikes` with the same `tokens` and `same`."""
    place = np.zeros(len(tokens), np.int64)
    place[originals] = np.arange(len(originals))
    copies = np.setdiff1d(np.arange(len(tokens)), originals)
    units = centred(tokens)
    nothing = np.logical_not(units.any(axis=1))
    for first in range(0, len(copies), ROWS):
        rows = copies[first : first + ROWS]
        similar = units[rows] @ units[originals].T
        similar[np.ix_(nothing[rows], nothing[originals])] = 1  # both are the mean image
        # Rounding may put the one that it was left out for a hair below the limit.
        place[rows] = np.where((similar >= same).any(1), (similar >= same).argmax(1), similar.argmax(1))
    return np.asarray(values[place])
