"""From a model and its images to what a person is asked: one pass of zero-shot, the model and all of the adaptation."""

from collections.abc import Callable, Iterator
from functools import partial
from itertools import count, repeat

import numpy as np
import torch

from must.base import storage
from must.base.files import WEIGHTS_FILE
from must.base.parameters import require
from must.config import ReviewConfig
from must.data.loading.loader import EvalSource
from must.deploy.review.teaching import Images
from must.method.answers.review import (
    FIRST_IMAGES,
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
from must.method.select.knn import whitened
from must.method.select.select import both_ends

SIMILAR = 6  # pictures that are shown beside one
LIKELY = 10  # classes that are offered first
MOST_PROBABILITIES = 20_000_000  # images x classes


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
