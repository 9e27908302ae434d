"""From a model and its images to what a person is asked: one pass of zero-shot, the model and all of the adaptation."""

import logging

import torch

from must.base import storage
from must.base.files import WEIGHTS_FILE
from must.base.parameters import require
from must.config import ReviewConfig
from must.data.loading.loader import EvalSource
from must.deploy.review.teaching import Images
from must.method.answers.review import RANDOM, REFINED, Picture, Review, doubtful_order, fingerprint, random_order
from must.method.distributed.process_group import init_distributed
from must.method.model.bundle import preprocess_of
from must.method.select.check import Predicted
from must.method.select.features import extract_features, subsample
from must.method.select.knn import whitened
from must.method.select.select import both_ends

logger = logging.getLogger(__name__)

SIMILAR = 6  # pictures that are shown beside one
LIKELY = 10  # classes that are offered first
NUMBERS = 20_000_000  # images x classes


def prepare(config: ReviewConfig) -> tuple[Review, Images]:
    """Looks at the split's images. Of copies of a file, the first in the order is asked about.

    Raises:
        ValueError: no such model or split, or a classifier file of other classes or of another model.
    """
    bundle, zero_shot = both_ends(config.model, config.baseline)
    classes = bundle.description.classes
    with init_distributed(config.device, timeout=600) as here:
        require(here.size == 1, "must review runs in one process")
        source = EvalSource.of(config, preprocess_of(bundle.description))
        source = subsample(source, max(100, min(config.images, NUMBERS // len(classes))))
        logger.info(f"must review: looking at {len(source.numbers):,} images")
        model = bundle.model.to(here.device).eval()
        seen = extract_features(zero_shot.model, source, here.device, lambda images: [model(images)])
    mean = seen.probabilities.float().mean(0)
    images = Images(seen.numbers, whitened(seen.features.float()).half(), mean.half())
    refined, similar = images.refined({}), images.tensors[0]
    before, after = (Predicted.of(one) for one in seen.probabilities[:2])
    predicted = torch.stack([before.labels, after.labels, refined.argmax(1)], 1)
    likely = refined.topk(min(LIKELY, len(classes))).indices
    labels, sure = predicted[:, REFINED].numpy(), after.confidence.numpy()
    order = random_order(labels, config.seed) if config.order == RANDOM else doubtful_order(sure)
    pictures: dict[str, Picture] = {}
    for place in order.tolist():
        number, three = int(seen.numbers[place]), predicted[place].tolist()
        first = dict.fromkeys([*three, *likely[place].tolist()])  # what one of the three says is always among them
        sha256 = fingerprint(source.reader.image(number))
        picture = Picture(
            number, seen.sources[place], sha256, tuple(three), round(float(sure[place]), 4),
            tuple(sorted(list(first)[:LIKELY], key=lambda k: -float(refined[place, k]))),
            tuple(seen.numbers[similar[place, :SIMILAR]].tolist()),
        )  # fmt: skip
        pictures.setdefault(sha256, picture)
    review = Review(
        model_sha256=fingerprint(storage.read_bytes(storage.join(config.model, WEIGHTS_FILE))),
        shards=config.shards, index_sha256=source.index.sha256, split=config.split, classes=list(classes),
        order=config.order, images=len(seen.numbers), pictures=list(pictures.values()),
    )  # fmt: skip
    return review, images
