"""A wide, badly captioned world to pre-train on: its towers know more than their class names tell.

The other towers see exactly the classes that they are adapted to, under exactly their names. These see far more
things in more styles, and captions as the web has them: things are long-tailed, rare ones are mostly captioned in
general terms ("sign"), some names are those of something similar that is more frequent, and everything has a second
name, which some captions use and no task knows. Zero-shot is then worse than what the features could do; by how much,
`python -m benchmarks.shifts.gap` measures before anything is adapted.

The world: 142 kana, 300 kanji, 33 Cyrillic and 26 Latin capitals, in computer fonts; of the first two also what six of
twelve brush, pen and display hands write. Everything is a pure function of the packages and the seed.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F

from benchmarks.shifts import drawings, families

WORLD = ("kana", "ideo", "cyrillic", "letters")
GENERAL = ("sign", "letter", "picture")
NAMED = (0.95, 0.25)  # share of captions that name the most frequent and the rarest thing
SECOND, WRONG, ALIKE = 0.35, 0.1, 6  # captions by the second name, and by that of the more frequent of so many similar

Drawings = tuple[np.ndarray, np.ndarray]


def names_of(name: str) -> list[str]:
    if name == "letters":
        return [f"latin {letter}" for letter in drawings.class_names("letters")]
    return families.names_of(name)


def hands(name: str, known: bool) -> Drawings:
    """Kana or kanji in twelve brush, pen and display fonts: six that the world knows, or the six that it does not."""
    pictures, labels = families.family(name, "target")
    half = len(labels) // 2  # fonts follow each other, and each has all characters
    return (pictures[:half], labels[:half]) if known else (pictures[half:], labels[half:])


def source() -> tuple[np.ndarray, np.ndarray, list[str]]:
    pictures, labels = [], []
    names: list[str] = []
    for name in WORLD:
        parts = [drawings.drawings(name, "computer") if name == "letters" else families.family(name, "source")]
        parts += [hands(name, True)] if name in ("kana", "ideo") else []
        for drawn, numbers in parts:
            pictures.append(drawn)
            labels.append(numbers + len(names))
        names += names_of(name)
    return np.concatenate(pictures), np.concatenate(labels), names


class World:
    """What there is to see, and what the web says of it. Texts: K names, then K second names, then the general ones."""

    def __init__(self, seed: int = 0) -> None:
        self.pictures, self.labels, names = source()
        K = self.things = len(names)
        self.texts = names + [name[::-1] for name in names] + list(GENERAL)
        self.rng = np.random.default_rng(seed)
        rank = np.random.default_rng(7).permutation(K) / max(K - 1, 1)  # 0: the most frequent
        self.named = NAMED[0] + (NAMED[1] - NAMED[0]) * rank
        shown = (1 + 20 * rank) ** -0.5
        self.chances = (shown / np.bincount(self.labels, minlength=K))[self.labels]
        self.chances /= self.chances.sum()
        small = F.avg_pool2d(torch.from_numpy(self.pictures)[:, None].float(), 8).flatten(1)
        means = torch.stack([small[torch.from_numpy(self.labels == k)].mean(0) for k in range(K)])
        means = F.normalize(means - small.mean(0))
        near = (means @ means.T - 2 * torch.eye(K)).topk(ALIKE).indices.numpy()
        self.alike = np.take_along_axis(near, np.argsort(rank[near], axis=1)[:, : ALIKE // 2], axis=1)

    def shown(self, size: int) -> np.ndarray:
        """Numbers of pictures: what the world shows."""
        return self.rng.choice(len(self.labels), size, p=self.chances)

    def captioned(self, size: int) -> tuple[np.ndarray, np.ndarray]:
        """(numbers of pictures, numbers of texts)."""
        chosen = self.shown(size)
        k = self.labels[chosen]
        wrong = self.rng.random(size) < WRONG
        said = np.where(wrong, self.alike[k, self.rng.integers(0, self.alike.shape[1], size)], k)
        text = said + self.things * (self.rng.random(size) < SECOND)
        general = self.rng.integers(2 * self.things, len(self.texts), size)
        return chosen, np.where(self.rng.random(size) < self.named[k], text, general)
