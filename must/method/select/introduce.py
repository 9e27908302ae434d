"""Facts about the images before `must train` begins, and what the ladder will be able to do with them."""

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
from must.method.select.neighbours import look_alikes
from must.method.select.rung_predictions import affordable, subsample

logger = logging.getLogger(__name__)

DATA_FILE = "data.json"
BATCH = 256  # images a forward pass
VERSION = 4  # of the facts: those of another version are made again


def introduce(
    config: TrainConfig,
    network: MaskedViT,
    bundle: Bundle,
    index_sha256: str,
    place: str,
    here: World,
    pause: Callable[[], None] | None = None,
) -> dict[str, Any] | None:
    """Facts of `data_profile` about the training split, which the main process prints.

    Every process calls this and looks at its share of at most 20,000 images. A run that goes on reads them at `place`,
    beside its checkpoints. No facts (and none but in the main process) where no image can be decoded, which training
    will tell.

    Args:
        network: zero-shot, in eval mode; it stays as it is.
        pause: called before every batch of a run on one process; it may raise to stop.
    """
    description = bundle.description
    weights = network.classifier.detach().float().cpu().numpy()
    made_of = [VERSION, index_sha256, config.split, config.epochs, description.backbone, description.classes]
    made_of.append(bundle.encoder.sha256 if bundle.encoder else "")
    key = hashlib.sha256(json.dumps(made_of).encode() + weights.tobytes()).hexdigest()
    uri = storage.join(place, DATA_FILE)
    facts = remembered(uri, key) if here.is_main else None
    if here.gather(not facts)[0]:
        reader = open_reader(config.shards, config.split, config.cache, config.cache_gb, config.index_sha256)
        source = EvalSource(reader, preprocess_of(description), BATCH, config.loaders, here.rank, here.size)
        most = affordable(len(source) * config.epochs, len(description.classes))  # as many as the ladder will
        own_pause = pause if here.size == 1 else None
        seen = extract_features(network, subsample(source, most), here.device, own_pause, bundle.encoder)
        parts = here.gather((seen, source.skipped))
        if here.is_main:
            sight = ImageFeatures.joined([part for part, _ in parts])
            facts = look_at(sight, weights, bundle, len(source), sum(skipped for _, skipped in parts))
            if facts:
                remember(uri, {"key": key, "facts": facts})
    if facts:
        logger.info(profile_text(facts))
    return facts


def look_at(sight: ImageFeatures, weights: Any, bundle: Bundle, images: int, skipped: int) -> dict[str, Any] | None:
    if not len(sight.numbers):
        return None
    neighbours, originals = look_alikes(sight.tokens)
    probabilities = sight.probabilities(weights, bundle.model.logit_factor)[originals]
    copies = len(sight.numbers) - len(originals)
    facts = data_profile(probabilities, neighbours, copies, bundle.description.classes, images, skipped)
    return facts | {"judge": sight.judge}


def remembered(uri: str, key: str) -> dict[str, Any] | None:
    """The facts of an earlier attempt of this run, if there are any and they are whole."""
    if not storage.exists(uri):
        return None
    data = storage.read_bytes(uri)
    found = storage.object_or_none(
        data, lambda content: dict(content["facts"]) if content["key"] == key and profile_text(content["facts"]) else {}
    )
    if found is None:
        logger.warning(f"warning: {printable(uri)} is damaged and is made again")
    return found or None


def remember(uri: str, content: dict[str, Any]) -> None:
    """Training does not end for want of it."""
    try:
        storage.write_bytes(uri, json.dumps(content, indent=1).encode())
    except (OSError, storage.UnreachableError) as error:
        logger.warning(f"warning: {printable(uri)} cannot be written: {printable(error, 200)}")
