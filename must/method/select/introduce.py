"""Facts about the images before `must train` begins, and what the ladder will be able to do with them."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable
from typing import Any

from must.base import storage
from must.base.text import printable
from must.config import TrainConfig
from must.data.loading.loader import EvalSource
from must.data.loading.reader import open_reader
from must.method.distributed.process_group import World
from must.method.model.bundle import Bundle, preprocess_of
from must.method.model.masked_vit import MaskedViT
from must.method.select.data_profile import data_profile, profile_text
from must.method.select.image_features import ImageFeatures, extract_features
from must.method.select.label_propagation import for_copies, refined
from must.method.select.neighbours import look_alikes
from must.method.select.refine import reason_against
from must.method.select.refined_labels import RefinedLabels
from must.method.select.rung_predictions import affordable, subsample

logger = logging.getLogger(__name__)

DATA_FILE = "data.json"
BATCH = 256  # images a forward pass
VERSION = 3  # of the facts: those of another version are made again


def introduce(
    config: TrainConfig,
    network: MaskedViT,
    bundle: Bundle,
    index_sha256: str,
    place: str,
    here: World,
    pause: Callable[[], None] | None = None,
    refine: bool = False,
) -> tuple[dict[str, Any] | None, RefinedLabels | None]:
    """Facts of `data_profile` about the training split, which the main process prints; refined classes.

    Every process calls this and looks at its share of at most 20,000 images. A run that goes on reads both at `place`,
    beside its checkpoints. No facts (and none but in the main process) where no image can be decoded, which training
    will tell; no refined classes where look-alikes know too little of the classes, or without `refine`.

    Args:
        network: zero-shot, in eval mode; it stays as it is.
        pause: called before every batch of a run on one process; it may raise to stop.
    """
    description = bundle.description
    weights = network.classifier.detach().float().cpu().numpy()
    made_of = [VERSION, index_sha256, config.split, config.epochs, description.backbone, description.classes]
    key = hashlib.sha256(json.dumps(made_of).encode() + weights.tobytes()).hexdigest()
    uri, labels_uri = storage.join(place, DATA_FILE), storage.join(place, f"refined-{key[:16]}.npz")
    facts, labels = None, None
    if here.is_main and (facts := remembered(uri, key)) and refine and not reason_against(facts):
        labels = RefinedLabels.load(labels_uri, len(description.classes))
    missing = not facts or (refine and not labels and not reason_against(facts))
    if here.gather(missing)[0]:
        preprocess = preprocess_of(description)
        reader = open_reader(config.shards, config.split, config.cache, config.cache_gb, config.index_sha256)
        source = EvalSource(reader, preprocess, BATCH, config.loaders, here.rank, here.size)
        most = affordable(len(source) * config.epochs, len(description.classes))  # as many as the ladder will
        chosen = subsample(source, most)
        seen = extract_features(network, chosen, preprocess, here.device, pause if here.size == 1 else None)
        parts = here.gather((seen, source.skipped))
        if here.is_main:
            sight = ImageFeatures.joined([part for part, _ in parts])
            facts, labels = look_at(sight, weights, bundle, len(source), sum(skipped for _, skipped in parts), refine)
            if facts:
                remember(uri, {"key": key, "facts": facts})
            if labels:
                labels.save(labels_uri)
    if facts:
        logger.info(profile_text(facts))
        if refine and not labels:
            logger.info(f"  Pseudo-labels are the teacher's alone: {reason_against(facts)}.")
    return facts, here.gather(labels)[0]


def look_at(
    sight: ImageFeatures, weights: Any, bundle: Bundle, images: int, skipped: int, refine: bool
) -> tuple[dict[str, Any] | None, RefinedLabels | None]:
    if not len(sight.numbers):
        return None, None
    neighbours, originals = look_alikes(sight.tokens)
    probabilities = sight.probabilities(weights, bundle.model.logit_factor)[originals]
    copies = len(sight.numbers) - len(originals)
    facts = data_profile(probabilities, neighbours, copies, bundle.description.classes, images, skipped)
    if not refine or reason_against(facts):
        return facts, None
    better = for_copies(refined(probabilities, neighbours), originals, sight.tokens)
    return facts, RefinedLabels.of(sight.numbers, better)


def remembered(uri: str, key: str) -> dict[str, Any] | None:
    """The facts of an earlier attempt of this run, if there are any and they are whole."""
    if not storage.exists(uri):
        return None
    data = storage.read_bytes(uri)
    try:
        found = json.loads(data)
        if found["key"] == key:
            profile_text(found["facts"])
            return dict(found["facts"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        logger.warning(f"warning: {printable(uri)} is damaged ({type(error).__name__}) and is made again")
    return None


def remember(uri: str, content: dict[str, Any]) -> None:
    """Training does not end for want of it."""
    try:
        storage.write_bytes(uri, json.dumps(content, indent=1).encode())
    except (OSError, storage.UnreachableError) as error:
        logger.warning(f"warning: {printable(uri)} cannot be written: {printable(error, 200)}")
