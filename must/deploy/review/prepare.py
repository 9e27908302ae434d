"""From a model and its images to what a person is asked: one pass of zero-shot and every rung."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from must.base import storage
from must.base.files import WEIGHTS_FILE
from must.base.parameters import require
from must.config import ReviewConfig
from must.data.loading.loader import EvalSource
from must.data.loading.reader import ShardReader
from must.method.answers.doubts import SHOWN, Doubts, order_of
from must.method.answers.questions import Picture, fingerprint
from must.method.answers.sampling import SamplingPlan, plan_of
from must.method.distributed.process_group import World, init_distributed
from must.method.model.bundle import Description, load_bundle, preprocess_of
from must.method.select.alpha import shares_of
from must.method.select.image_features import extract_features
from must.method.select.ladder import RUNGS, audit
from must.method.select.neighbours import look_alikes
from must.method.select.rung_predictions import RungPredictions, predict_rungs, subsample
from must.method.select.select import both_ends, start_of

logger = logging.getLogger(__name__)

ALIKE = 6  # look-alikes that are shown beside a picture


def prepare(config: ReviewConfig) -> SamplingPlan:
    """Looks at the split's images, at most `config.images` of them.

    Raises:
        ValueError: no such model or split, or no image on which any part of the adaptation differs from zero-shot.
    """
    bundle, zero_shot = both_ends(config.model, config.baseline)
    ours = bundle.description
    with looking(config, ours) as (source, here):
        frozen = start_of(bundle, zero_shot)
        looks = predict_rungs(frozen, bundle.model.state_dict(), source, here.device, encoder=zero_shot.encoder)
    neighbours, originals = look_alikes(looks.tokens)
    looks = looks.only(originals)
    require(
        bool((looks.labels[1:] != looks.labels[0]).any()),
        f"--model {config.model}: names every image as zero-shot does, so there is nothing to decide; where training "
        "kept zero-shot, train with --select none",
    )
    likely = np.take_along_axis(looks.probabilities.mean(axis=0, dtype=np.float32), looks.labels.T, axis=1).T
    order, facts = plan_of(looks.labels, likely, evidence(looks, neighbours, shares_of(ours)), config.seed)
    chances = facts.pop("chances")
    return SamplingPlan(
        baseline=config.baseline,
        alphas=list(RUNGS),
        pictures=[
            picture(source.reader, looks, neighbours, int(place), chance)
            for place, chance in zip(order, chances, strict=True)
        ],
        **about(config, source, ours),
        **facts,
    )


@torch.inference_mode()
def prepare_doubts(config: ReviewConfig) -> Doubts:
    """The same of the model alone: at most `config.images` images. Raises ValueError: as `prepare`."""
    bundle = load_bundle(config.model)
    with looking(config, bundle.description) as (source, here):
        seen = extract_features(bundle.model, source, here.device)
    require(len(seen.numbers) > 0, "none of the split's images can be decoded; check them: must index verify")
    weights = bundle.model.classifier.detach().cpu().numpy()
    said = seen.probabilities(weights, bundle.model.logit_factor)
    first = np.argsort(-said, axis=1, kind="stable")[:, :SHOWN]
    first = np.pad(first, ((0, 0), (0, SHOWN - first.shape[1])), mode="edge")  # a single class
    neighbours, originals = look_alikes(seen.tokens)
    sure = said[np.arange(len(said)), first[:, 0]]
    places = order_of(first[originals, 0], sure[originals])
    return Doubts(
        pictures=[
            pictured(
                source.reader,
                int(seen.numbers[originals[place]]),
                first[originals[place]].tolist(),
                float(sure[originals[place]]),
                seen.numbers[originals[neighbours[place, :ALIKE]]].tolist(),
            )
            for place in places
        ],
        **about(config, source, bundle.description),
    )


@contextmanager
def looking(config: ReviewConfig, description: Description) -> Iterator[tuple[EvalSource, World]]:
    """The images that are looked at, and by whom. Raises ValueError: by several processes."""
    with init_distributed(config.device, timeout=600) as here:
        require(here.size == 1, "must review runs in one process")
        source = subsample(EvalSource.of(config, preprocess_of(description)), config.images)
        logger.info(f"must review: looking at {len(source.numbers):,} images")
        yield source, here


def about(config: ReviewConfig, source: EvalSource, description: Description) -> dict[str, Any]:
    """What the questions are about."""
    return {
        "model_sha256": fingerprint(storage.read_bytes(storage.join(config.model, WEIGHTS_FILE))),
        "shards": config.shards,
        "index_sha256": source.index.sha256,
        "split": config.split,
        "classes": list(description.classes),
    }


def evidence(looks: RungPredictions, neighbours: np.ndarray, shares: np.ndarray | None) -> np.ndarray:
    """[R] look-alikes' standard errors for each rung, against zero-shot."""
    if not neighbours.size:
        return np.zeros(len(looks.labels) - 1)
    judge, old = looks.probabilities[0], looks.labels[0]
    return np.array([audit(judge, old, new, neighbours, shares)[0] for new in looks.labels[1:]])


def picture(reader: ShardReader, looks: RungPredictions, neighbours: np.ndarray, place: int, chance: float) -> Picture:
    alike = looks.numbers[neighbours[place, :ALIKE]].tolist()
    return pictured(reader, int(looks.numbers[place]), looks.labels[:, place].tolist(), chance, alike)


def pictured(reader: ShardReader, number: int, classes: list[int], chance: float, alike: list[int]) -> Picture:
    source, sha256 = str(reader.description(number)["source"]), fingerprint(reader.image(number))
    return Picture(number, source, sha256, chance, tuple(classes), tuple(alike))
