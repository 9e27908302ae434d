"""What a person is asked, from one pass of zero-shot and the model over the images; and what the answers change."""

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import count, repeat
from typing import Self

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from must.base import storage
from must.base.errors import UserError
from must.base.files import WEIGHTS_FILE
from must.base.parameters import require
from must.base.processes import cores
from must.config import ReviewConfig
from must.data.loading.loader import EvalSource
from must.method.answers.estimate import share
from must.method.answers.review import (
    FIRST_IMAGES,
    IMAGES_FILE,
    RANDOM,
    REFINED,
    Picture,
    Review,
    doubtful_order,
    fingerprint,
    random_order,
)
from must.method.distributed.process_group import init_distributed
from must.method.model.bundle import preprocess_of
from must.method.select.check import Predicted
from must.method.select.features import ImageFeatures, extract_features, subsample
from must.method.select.knn import nearest, whitened
from must.method.select.propagate import answer_rows, refined_probabilities
from must.method.select.select import both_ends

SIMILAR = 6  # pictures that are shown beside one
LIKELY = 10  # classes that are offered first
MOST_PROBABILITIES = 20_000_000  # images x classes
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
        return refined_probabilities(*self.tensors, answer_rows(answers, self.numbers))


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


def prepare(config: ReviewConfig) -> tuple[Review, Images]:
    """Looks at the split's images. Of copies of a file, the first in the order is asked about.
    Raises ValueError: no such model or split, or a classifier file of other classes or of another model."""
    *_, last = looks(config)
    return last


def looks(
    config: ReviewConfig, begun: Review | None = None, pause: Callable[[int, int, int], None] = lambda *_: None
) -> Iterator[tuple[Review, Images]]:
    """What is known after the first images, drawn at random, and after all; the first time is left out where there are
    few images, or where a review was `begun`. Its pictures stay the first of a random order, which the others follow.

    Args:
        pause: called before every batch with the numbers of images (looked at, of this part, of all); it may raise to
            stop.
    """
    bundle, zero_shot = both_ends(config.model, config.baseline)
    classes = bundle.description.classes
    weights = fingerprint(storage.read_bytes(storage.join(config.model, WEIGHTS_FILE)))
    with init_distributed(config.device, timeout=600) as here:
        require(here.size == 1, "must review runs in one process")
        source = EvalSource.of(config, preprocess_of(bundle.description))
        source = subsample(source, max(100, min(config.images, MOST_PROBABILITIES // len(classes))))
        model = bundle.model.to(here.device).eval()
        every, parts = list(source.numbers), list[ImageFeatures]()
        some = set[int]()
        if not begun and len(every) > 2 * FIRST_IMAGES:
            some = set(np.random.default_rng(config.seed).choice(every, FIRST_IMAGES, replace=False).tolist())
        for part in (sorted(some), [number for number in every if number not in some]):
            if not part:
                continue
            source.numbers = part
            progress = map(pause, count(0, source.batch_size), repeat(len(part)), repeat(len(every)))
            seen = extract_features(
                zero_shot.model, source, here.device, lambda images: [model(images)], partial(next, progress)
            )
            parts.append(seen)
            begun, images = review_of(config, source, classes, weights, ImageFeatures.joined(parts), begun)
            yield begun, images


def review_of(
    config: ReviewConfig,
    source: EvalSource,
    classes: list[str],
    weights: str,
    seen: ImageFeatures,
    begun: Review | None,
) -> tuple[Review, Images]:
    mean = seen.probabilities.float().mean(0)
    images = Images(seen.numbers, whitened(seen.features.float()).half(), mean.half())
    refined, similar = images.refined({}), images.tensors[0]
    before, after = (Predicted.of(one) for one in seen.probabilities[:2])
    predicted = torch.stack([before.labels, after.labels, refined.argmax(1)], 1)
    likely = refined.topk(min(LIKELY, len(classes))).indices
    labels, sure = predicted[:, REFINED].numpy(), after.confidence.numpy()
    known = {picture.number: picture.sha256 for picture in begun.pictures} if begun else {}
    place_of = {number: place for place, number in enumerate(seen.numbers.tolist())}
    if config.order == RANDOM:
        first = [place_of[number] for number in known if number in place_of]
        rest = np.setdiff1d(np.arange(len(labels)), first)
        order = [*first, *(rest[random_order(labels[rest], config.seed)].tolist() if len(rest) else ())]
    else:
        order = doubtful_order(sure).tolist()
    pictures: dict[str, Picture] = {}
    for place in order:
        number, three = int(seen.numbers[place]), predicted[place].tolist()
        names = dict.fromkeys([*three, *likely[place].tolist()])  # what one of the three says is always among them
        sha256 = known.get(number) or fingerprint(source.reader.image(number))
        picture = Picture(
            number, seen.sources[place], sha256, tuple(three), round(float(sure[place]), 4),
            tuple(sorted(list(names)[:LIKELY], key=lambda k: -float(refined[place, k]))),
            tuple(seen.numbers[similar[place, :SIMILAR]].tolist()),
        )  # fmt: skip
        pictures.setdefault(sha256, picture)
    review = Review(
        model_sha256=weights, shards=config.shards, index_sha256=source.index.sha256, split=config.split,
        classes=list(classes), order=config.order, images=len(seen.numbers), pictures=list(pictures.values()),
    )  # fmt: skip
    return review, images
