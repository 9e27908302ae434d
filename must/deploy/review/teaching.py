"""What answers change: the labels of similar images, by propagation, and how often those are right. Imports torch."""

import threading
from dataclasses import dataclass
from functools import cached_property
from typing import Self

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from must.base import storage
from must.base.errors import UserError
from must.base.parameters import require
from must.base.processes import cores
from must.method.answers.estimate import share
from must.method.answers.review import IMAGES_FILE
from must.method.select.knn import nearest
from must.method.select.propagate import places_of, refined_probabilities

FOLDS = 5


Known = list[tuple[int, int]]  # (number in the split, class number), in the order in which pictures are asked


def limit_threads() -> None:
    """Of this thread: a core is left to answer the page."""
    torch.set_num_threads(max(1, cores() - 1))


@dataclass(frozen=True)
class Images:
    """N images, D numbers each, K classes."""

    numbers: Tensor  # int64 [N], in the split
    values: Tensor  # float16 [N, D], as of `whitened`
    probabilities: Tensor  # float16 [N, K], mean of zero-shot's and the adapted model's

    def save(self, folder: str) -> None:
        storage.write_bytes(
            storage.join(folder, IMAGES_FILE),
            save({name: vars(self)[name] for name in ("numbers", "values", "probabilities")}),
        )

    @classmethod
    def load(cls, folder: str) -> Self:
        """Raises ValueError: there is none, or it is damaged."""
        uri = storage.join(folder, IMAGES_FILE)
        try:
            found = cls(**load(storage.read_bytes(uri)))
            require(len(found.numbers) == len(found.values) == len(found.probabilities), "lengths")
        except (OSError, SafetensorError, TypeError, ValueError):
            why = f"{uri}: is missing or damaged; delete review.json there, and `must review` makes both again"
            raise UserError(why) from None
        return found

    @cached_property
    def tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The first arguments of `refined_probabilities`."""
        values = self.values.float()
        return *nearest(values), values, self.probabilities.float()

    @cached_property
    def usual(self) -> Tensor:
        """Int64 [N]: the refined labels without answers."""
        return self.refined({}).argmax(1)

    def refined(self, answers: dict[int, int]) -> Tensor:
        """Float32 [N, K]: the refined labels' probabilities with these answers, {number: class number}."""
        return refined_probabilities(*self.tensors, places_of(answers, self.numbers))


class Teaching:
    """Works out what the answers so far change, in a thread, as that may take longer than the next answer does."""

    def __init__(self, images: Images) -> None:
        self.images, self.lock = images, threading.Lock()
        self.place = {number: place for place, number in enumerate(images.numbers.tolist())}
        self.thread: threading.Thread | None = None
        self.closed = False
        self.wanted: tuple[Known, Known] | None = None
        self.all: list[float] = []  # (answers about pictures drawn at random, the share of `right` with its interval)
        self.changed: tuple[int, int] | None = None  # (answers, labels of other images that they changed)

    def update(self, known: Known, drawn: Known) -> None:
        """`drawn`: those of `known` about pictures that were drawn at random."""
        with self.lock:
            self.wanted = known, drawn
            if self.thread is None:
                self.thread = threading.Thread(target=self.work, daemon=True)
                self.thread.start()

    def wait(self, seconds: float | None = None) -> None:
        if (thread := self.thread) is not None:
            thread.join(seconds)

    def close(self) -> None:
        """Ends the thread: none may compute while the program ends."""
        self.closed = True
        self.wait()

    def text(self) -> str:
        if self.changed is None or not self.changed[0]:
            return ""
        answers, changed = self.changed
        return f"So far {changed:,} of {len(self.images.numbers) - answers:,} other refined labels changed."

    def work(self) -> None:
        limit_threads()
        while True:
            with self.lock:
                if self.wanted is None or self.closed:
                    self.thread = None
                    return
                (known, drawn), self.wanted = self.wanted, None
            self.changed = len(known), self.change(known)
            if self.wanted is None and drawn and not self.closed:
                self.all = [len(drawn), *share(self.right(drawn))]

    def change(self, known: Known) -> int:
        others = self.images.refined(dict(known)).argmax(1) != self.images.usual
        others[[self.place[number] for number, _ in known]] = False
        return int(others.sum())

    def right(self, known: Known) -> np.ndarray:
        """Bool [A]: whether the refined labels of an answered picture are right when four fifths of the answers teach,
        its own not among them."""
        found = np.zeros(len(known), bool)
        for fold in range(FOLDS):
            labels = self.images.refined(dict(one for at, one in enumerate(known) if at % FOLDS != fold)).argmax(1)
            for at in range(fold, len(known), FOLDS):
                found[at] = int(labels[self.place[known[at][0]]]) == known[at][1]
        return found
