"""Computes the review: one pass of the zero-shot and the adapted model over the images, then the effect of answers."""

import logging
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
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
from must.data.shards.history import read_hashes
from must.method.answers.answers_file import RANDOM, read_answers
from must.method.answers.population import (
    count_cohorts,
    find_cohorts,
    read_population,
    record_population,
    shorten,
)
from must.method.answers.review import (
    FIRST_IMAGES,
    IMAGES_FILE,
    MOST_BY_COVERAGE,
    REFINED,
    SCHEDULE,
    Picture,
    Review,
    fingerprint,
    order_by_coverage,
    random_order,
)
from must.method.distributed.process_group import init_distributed
from must.method.memory.build import build_memory, predict_left_out
from must.method.memory.pool import Pool, Predicted, fit_whitening, join_pools, read_pool, subsample
from must.method.memory.propagate import answer_rows, refine_probabilities
from must.method.model.bundle import load_bundle, zero_shot_bundle
from must.method.model.classifier import load_text_classifier
from must.method.model.description import get_preprocess, require_classes
from must.method.model.vectors import nearest

logger = logging.getLogger(__name__)

SIMILAR_SHOWN = 6  # similar pictures shown beside a picture
LIKELY = 10  # classes that are offered first
MOST_PROBABILITIES = 20_000_000  # images x classes
LISTED_CLASSES = 30  # with more, the order by coverage prefers images like those that the model is not sure of


def limit_threads() -> None:
    """Limits torch's threads in this thread: one core stays free to serve the page."""
    torch.set_num_threads(max(1, cores() - 1))


@dataclass(frozen=True)
class Images:
    """N images, D numbers each, K classes."""

    numbers: Tensor  # int64 [N], in the split
    values: Tensor  # float16 [N, D], unit vectors of the model's memory
    probabilities: Tensor  # float16 [N, K], of the model without its memory

    def save(self, folder: str) -> None:
        storage.write_bytes(
            storage.join(folder, IMAGES_FILE),
            save({name: vars(self)[name] for name in ("numbers", "values", "probabilities")}),
        )

    @classmethod
    def load(cls, folder: str) -> Self:
        uri = storage.join(folder, IMAGES_FILE)
        try:
            images = cls(**load(storage.read_bytes(uri)))
            require(len(images.numbers) == len(images.values) == len(images.probabilities), "lengths")
        except (OSError, SafetensorError, TypeError, ValueError):
            why = f"{uri}: is missing or damaged; delete review.json there, and `must review` makes both again"
            raise UserError(why) from None
        return images

    @cached_property
    def neighbours(self) -> tuple[Tensor, Tensor]:
        """As of `nearest`."""
        return nearest(self.values.float())

    @cached_property
    def initial_labels(self) -> Tensor:
        """Int64 [N]: the refined labels without answers."""
        return self.refined({}).argmax(1)

    def refined(self, answers: dict[int, int]) -> Tensor:
        """Float32 [N, C]: the refined labels' probabilities with these answers, {number: class number}; a last column
        for none of the classes if an answer says so."""
        rows = answer_rows(answers, self.numbers)
        return refine_probabilities(*self.neighbours, self.probabilities, self.values.float(), rows).labels


class AnswerEffect:
    """Computes the effect of the answers in a thread, as this may take longer than giving the next answer. The program
    ends after the thread: torch must not compute while Python ends."""

    def __init__(self, images: Images) -> None:
        self.images = images
        self.thread = ThreadPoolExecutor(1, initializer=limit_threads)
        self.newest: dict[int, int] = {}
        self.last: Future[None] | None = None
        self.changed: tuple[int, int] | None = None  # (number of answers, labels of other images that they changed)

    def update(self, labels: dict[int, int]) -> None:
        """`labels`: {number in the split: class number}."""
        self.newest = labels
        self.last = self.thread.submit(self.work, labels)

    def wait(self, seconds: float | None = None) -> None:
        with suppress(TimeoutError):
            if self.last:
                self.last.result(seconds)

    def text(self) -> str:
        if self.changed is None or not self.changed[0]:
            return ""
        answers, changed = self.changed
        return f"So far {changed:,} of {len(self.images.numbers) - answers:,} other refined labels changed."

    def work(self, labels: dict[int, int]) -> None:
        if labels is not self.newest:  # those are computed next
            return
        try:
            changed = self.images.refined(labels).argmax(1) != self.images.initial_labels
            answered = torch.tensor(list(labels), dtype=torch.int64)
            self.changed = len(labels), int((changed & ~torch.isin(self.images.numbers, answered)).sum())
        except Exception:  # a bug; the answers are stored nevertheless
            logger.exception("the effect of the answers could not be computed")


def compute_reviews(
    config: ReviewConfig, saved: Review | None = None, pause: Callable[[int, int], None] = lambda *_: None
) -> Iterator[tuple[Review, Images]]:
    """Yields the review after the first images, drawn at random, and after all images; only the latter where there are
    few images or a review was `saved`. The pictures of the earlier review come first. Of several copies of a file, only
    the first that is drawn is asked about.
    `pause`: called before every batch with two numbers of images: computed, in this part; may raise to stop."""
    bundle, zero_shot = load_bundle(config.model), zero_shot_bundle(load_text_classifier(config.baseline))
    classes = bundle.description.classes
    require_classes(f"--baseline {config.baseline}", classes, zero_shot.description.classes)
    weights = fingerprint(storage.read_bytes(storage.join(config.model, WEIGHTS_FILE)))
    with init_distributed(config.device, timeout=600) as process:
        require(process.size == 1, "must review runs in one process")
        source = EvalSource.open(config, get_preprocess(bundle.description))
        hashes = read_hashes(config.shards, source.index, config.split)
        answers = read_answers(config.output).items()
        drawn = shorten(sha256 for sha256, answer in answers if answer.sampled == RANDOM)
        record_population(config.output, hashes, drawn)
        source = subsample(source, max(100, min(config.images, MOST_PROBABILITIES // len(classes))))
        model, memory = bundle.model, bundle.memory
        whitening = (memory.tokens, memory.embedding) if memory else fit_whitening(model, source, process.device)
        every, pools = list(source.numbers), list[Pool]()
        first = set[int]()
        if not saved and len(every) > 2 * FIRST_IMAGES:
            first = set(np.random.default_rng(config.seed).choice(every, FIRST_IMAGES, replace=False).tolist())
            # Only those whose answers measure: they are not asked again. Others would come too often in the sample.
            first |= {*every} & {*np.flatnonzero(np.isin(hashes, drawn)).tolist()}
        parts = [part for part in (sorted(first), [number for number in every if number not in first]) if part]
        for part in parts:
            source.numbers = part
            source.pause = partial(next, map(pause, count(0, source.batch_size), repeat(len(part))))
            pools.append(read_pool(model, source, process.device, (zero_shot.model,), whitening))
            saved, images = make_review(config, source, classes, weights, join_pools(pools), saved)
            saved = replace(saved, complete=part is parts[-1])
            if saved.complete:
                first_asked = {picture.sha256 for picture in saved.pictures[: SCHEDULE.random_first]}
                answered = {*read_answers(config.output, classes)} | first_asked
                saved = replace(saved, coverage=coverage_order(saved, images, answered))
            yield saved, images


def make_review(
    config: ReviewConfig, source: EvalSource, classes: list[str], weights: str, features: Pool, earlier: Review | None
) -> tuple[Review, Images]:
    """Classes of the zero-shot model, of the model with a memory of the images before any answer, and refined."""
    images = Images(features.numbers, features.vectors, features.probabilities)
    memory, refined = build_memory(
        features, answer_rows({}, features.numbers), torch.device("cpu"), near=images.neighbours
    )
    similar = images.neighbours[0]
    zero_shot, adapted = Predicted.from_probabilities(features.others[0]), Predicted.from_probabilities(refined)
    with_memory = predict_left_out(memory, features, torch.arange(len(features.numbers))).labels
    predicted = torch.stack([zero_shot.labels, with_memory, refined.argmax(1)], 1)
    likely = refined.topk(min(LIKELY, len(classes))).indices
    labels, confidence = predicted[:, REFINED].numpy(), adapted.confidence.numpy()
    known = {picture.number: picture.sha256 for picture in earlier.pictures} if earlier else {}
    index_of = {number: index for index, number in enumerate(features.numbers.tolist())}
    first = [index_of[number] for number in known if number in index_of]
    others = np.setdiff1d(np.arange(len(labels)), first)
    order = [*first, *(others[random_order(labels[others], config.seed)].tolist() if len(others) else ())]
    pictures: dict[str, Picture] = {}
    for index in order:
        number, classes_of_image = int(features.numbers[index]), predicted[index].tolist()
        candidates = dict.fromkeys([*classes_of_image, *likely[index].tolist()])  # the predicted classes are included
        sha256 = known.get(number) or fingerprint(source.reader.image(number))
        picture = Picture(
            number, features.sources[index], sha256, tuple(classes_of_image), round(float(confidence[index]), 4),
            tuple(sorted(list(candidates)[:LIKELY], key=lambda k: -float(refined[index, k]))),
            tuple(features.numbers[similar[index, :SIMILAR_SHOWN]].tolist()),
        )  # fmt: skip
        pictures.setdefault(sha256, picture)
    population, here = read_population(config.output), read_hashes(config.shards, source.index, config.split)
    cohorts = find_cohorts(population, shorten(pictures)).tolist()
    drawn = [replace(picture, cohort=cohort) for picture, cohort in zip(pictures.values(), cohorts, strict=True)]
    random = [s for s, answer in read_answers(config.output).items() if answer.sampled == RANDOM and not answer.unsure]
    gone = [sha256 for sha256, there in zip(random, np.isin(shorten(random), here), strict=True) if not there]
    review = Review(
        model_sha256=weights, shards=config.shards, index_sha256=source.index.sha256, split=config.split,
        classes=list(classes), images=len(features.numbers), complete=False, pictures=drawn, coverage=[],
        cohorts=count_cohorts(population, here),
        gone=list(zip(gone, find_cohorts(population, shorten(gone)).tolist(), strict=True)),
    )  # fmt: skip
    return review, images


def coverage_order(review: Review, images: Images, answered: set[str]) -> list[int]:
    """Numbers of the review's pictures, the one that teaches most first. `answered`: sha256s of the pictures that have
    an answer when the first of them is asked."""
    pictures = {picture.number: picture for picture in review.pictures}
    numbers = images.numbers.tolist()
    rows = [row for row, number in enumerate(numbers) if number in pictures]
    shown = [pictures[numbers[row]] for row in rows]
    already = np.flatnonzero([picture.sha256 in answered for picture in shown])
    doubt = np.array([1 - picture.confidence for picture in shown]) if len(review.classes) > LISTED_CLASSES else None
    order = order_by_coverage(images.values[rows].float().numpy(), doubt, already, MOST_BY_COVERAGE)
    return [shown[row].number for row in order.tolist()]
