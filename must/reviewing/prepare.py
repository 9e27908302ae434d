"""Computes the review from the features of the images, then the effect of answers."""

import logging
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from must.answers.answers_file import read_answers
from must.answers.population import KeptLabels, record_population, shorten, write_kept
from must.answers.review import Picture, Review, draw_order, hash_picture
from must.base import storage
from must.base.console import quieted
from must.base.errors import UserError
from must.base.parameters import require
from must.base.processes import count_cores
from must.config import RefineConfig, ReviewConfig
from must.config.defaults import RISK
from must.config.work import PARTS, REFINED_FILE, find_work
from must.data.loader import EvalSource
from must.data.reader import ShardReader
from must.memory.features import Features, Pool, read_features
from must.memory.measure import find_answers
from must.memory.predictions import TopLabels
from must.memory.propagate import LARGEST_MEMORY, NO_ANSWERS, build_memory, find_neighbours
from must.memory.refine import RefineResult, refine_pool
from must.model.bundle import load_bundle, make_zero_shot_bundle
from must.model.classifier import load_text_classifier
from must.model.description import get_preprocess, require_classes
from must.model.distributed import init_distributed
from must.model.memory import Neighbours
from must.reviewing.progress import CHANGED, Progress, find_made_of

logger = logging.getLogger(__name__)

CPU = torch.device("cpu")
LIKELY = 10  # classes that are offered first
MOST_PROBABILITIES = 20_000_000  # images x classes


def limit_threads() -> None:
    """Limits torch's threads in this thread: one core stays free to serve the page."""
    torch.set_num_threads(max(1, count_cores() - 1))


@dataclass(frozen=True)
class Images:
    """What the review is computed from: N pictures, K classes."""

    pool: Pool
    features: Features
    made_of: tuple[str, str]  # as of `find_made_of`
    classes: list[str]

    @cached_property
    def near(self) -> Neighbours:
        """As of `find_neighbours`."""
        return find_neighbours(self.pool, CPU)

    @cached_property
    def initial_labels(self) -> Tensor:
        """Int64 [N]: the refined labels without answers."""
        return self.refined(NO_ANSWERS).argmax(1)

    def refined(self, answers: Tensor) -> Tensor:
        """Float32 [N, K]: the refined labels' probabilities with these answers, as of `build_memory`."""
        return build_memory(self.pool, answers, CPU, near=self.near)[1]


class AnswerEffect:
    """Computes in a thread what the answers in the folder do, as this may take longer than giving the next answer. The
    program ends after the thread: torch must not compute while Python ends."""

    def __init__(self, config: ReviewConfig, images: Images, truth: Mapping[str, str] | None = None) -> None:
        """`truth`: image -> class, where all are known."""
        self.images = images
        numbers = {name: number for number, name in enumerate(images.classes)}
        self.truth = torch.tensor([numbers[truth[name]] for name in images.pool.sources]) if truth else None
        self.config = RefineConfig(
            shards=config.shards, split=config.split, classifier=config.baseline, model=config.model,
            answers=config.output, output=config.output, risk=find_risk(config),
        )  # fmt: skip
        self.thread = ThreadPoolExecutor(1, initializer=limit_threads)
        self.since = 0.0  # when the first answer came that is not counted yet
        self.newest = self.computed = 0  # the numbers of the last answers, and of those that `progress` is of
        self.last: Future[None] | None = None
        self.progress: Progress | None = None
        self.changed = False  # whether the images or the model are others now

    def update(self) -> None:
        """Answers were written, or taken back."""
        if self.is_current:
            self.since = time.monotonic()
        self.newest += 1
        self.last = self.thread.submit(self.work, self.newest)

    @property
    def is_current(self) -> bool:
        """Whether `progress` is of the last answers."""
        return self.computed == self.newest

    @property
    def age(self) -> float:
        """Seconds since the first answer that is not counted yet."""
        return 0.0 if self.is_current else time.monotonic() - self.since

    def wait(self, seconds: float | None = None) -> None:
        with suppress(TimeoutError):
            if self.last:
                self.last.result(seconds)

    def work(self, number: int) -> None:
        if number != self.newest:  # the newest answers are counted next
            return
        if find_made_of(self.config.model, self.config.shards) != self.images.made_of:
            if not self.changed:
                logger.warning(CHANGED)
            self.changed = True  # answers are not joined to other pictures
            return
        try:
            self.progress, kept = self.compute()
            self.computed = number
            if kept:
                write_kept(self.config.answers, kept, self.images.classes)
        except Exception:  # a bug; the answers are stored nevertheless
            logger.exception("the effect of the answers could not be computed")

    def arrange(self, numbers: list[int]) -> list[int]:
        """The same numbers, those of pictures that look alike side by side."""
        rows = torch.searchsorted(self.images.pool.numbers, torch.tensor(numbers))
        vectors = self.images.pool.vectors[rows].float()
        cosines, order = vectors @ vectors.T, [0]
        while len(order) < len(numbers):
            near = cosines[order[-1]].clone()
            near[order] = -2
            order.append(int(near.argmax()))
        return [numbers[place] for place in order]

    def find_labels(self, refined: RefineResult) -> list[tuple[int, int]]:
        """Of each picture: its label, and the most probable other class."""
        labels, places = refined.labels.labels.tolist(), refined.likely.tolist()
        return [(label, two[two[0] == label]) for label, two in zip(labels, places, strict=True)]

    def compute(self) -> tuple[Progress, KeptLabels | None]:
        """The progress, and accepted labels that are to be written."""
        pool = self.images.pool
        with quieted(logging.ERROR, "must.memory.measure"):  # what it says is about `must refine`
            given = read_answers(self.config.answers)
            answers = find_answers(self.config, given, self.images.classes, self.images.features)
        refined = refine_pool(pool, answers, CPU, LARGEST_MEMORY, self.config.risk, near=self.images.near)
        changed = refined.labels.labels != self.images.initial_labels
        changed[refined.answered] = False
        measured, true = refined.measured, None
        if self.truth is not None:
            right = [one.labels == self.truth for one in (refined.zero_shot, refined.labels)]
            true = right[0].double().mean().item(), right[1].double().mean().item()
        progress = Progress(
            int(answers.known.sum()), int(changed.sum()), answers.unread - answers.elsewhere, answers.elsewhere,
            dict(zip(pool.numbers.tolist(), self.find_labels(refined), strict=True)), true, answers.checks,
            answers.missed,
        )  # fmt: skip
        if measured is None:
            return progress, None
        rows = np.flatnonzero(measured.others & ~measured.marked)
        rows = rows[np.argsort(refined.labels.confidence.numpy()[rows], kind="stable")]
        progress = replace(
            progress, accuracy=measured.accuracy, accepted=measured.accepted,
            left=pool.numbers[rows].tolist(), classes=refined.describe_classes(self.images.classes),
        )  # fmt: skip
        return progress, None if refined.kept is answers.kept else refined.kept


def find_risk(config: ReviewConfig) -> float:
    """What `must refine` was asked to promise of the labels of the same WORK."""
    work = find_work(RefineConfig, {"model": config.model, "shards": config.shards})
    with suppress(UserError, OSError, KeyError):
        file = storage.join(work, PARTS["labels"].path, REFINED_FILE)
        return float(storage.read_object(file, dict, UserError())["config"]["risk"])
    return RISK


def compute_review(
    config: ReviewConfig, saved: Review | None = None, pause: Callable[[], object] = lambda: None
) -> tuple[Review, Images]:
    """The review, which is `saved` if that is of the same pictures, and its images, from the features of all images.
    `pause`: called before every batch of images whose features are not there yet; it may raise to stop."""
    bundle, zero_shot = load_bundle(config.model), make_zero_shot_bundle(load_text_classifier(config.baseline))
    classes = bundle.description.classes
    require_classes(f"--baseline {config.baseline}", classes, zero_shot.description.classes)
    limit = max(100, min(config.limit, MOST_PROBABILITIES // len(classes)))
    with init_distributed(config.device, timeout=600) as world:
        require(world.size == 1, "must review runs in one process")
        source = EvalSource.open(config, get_preprocess(bundle.description))
        source.pause = pause
        features = read_features(bundle.model, source, world, config.features, limit, bundle.memory)
        others = features
        if bundle.description.provenance.config:
            others = read_features(zero_shot.model, source, world, config.features, limit)
        names = source.reader.sources(features.numbers)
        pool = features.pool(bundle.model, [others.probabilities(zero_shot.model)], names)
    images = Images(pool, features, (bundle.description.weights_sha256, source.index.sha256), classes)
    if saved and len(saved.pictures) == len(pool.numbers):  # else --limit is another one
        return saved, images
    return make_review(config, images, source.reader), images


def make_review(config: ReviewConfig, images: Images, reader: ShardReader) -> Review:
    """The pictures with their labels before any answer."""
    pool, classes, refined = images.pool, images.classes, images.refined(NO_ANSWERS)
    labels = TopLabels.from_probabilities(refined).labels
    likely = refined.topk(min(LIKELY, len(classes))).indices
    pictures = list[Picture]()
    for index in draw_order(labels.numpy(), config.seed).tolist():
        number = int(pool.numbers[index])
        pictures.append(Picture(
            number, pool.sources[index], hash_picture(reader.image(number)), int(labels[index]),
            tuple(likely[index].tolist()),
        ))  # fmt: skip
    random = {sha256: answer for sha256, answer in read_answers(config.output).items() if answer.measures}
    wrong = shorten(sha256 for sha256, answer in random.items() if answer.corrects)
    record_population(config.output, images.features.split, shorten(random), wrong)
    model, index = images.made_of
    return Review(model_sha256=model, index_sha256=index, split=config.split, classes=list(classes), pictures=pictures)
