"""Before `must train` begins: what the images look like, and what the ladder will hence be able to do."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable
from typing import Any

from must import storage
from must.config import TrainConfig
from must.data.loader import eval_batches
from must.distributed.process_group import World
from must.model.bundle import Bundle, preprocess_of
from must.model.masked_vit import MaskedViT
from must.select.looking import thinned
from must.select.neighbours import look_alikes
from must.select.portrait import portrait, told
from must.select.sight import Sight, see
from must.text import printable

DATA_FILE = "data.json"
BATCH = 256  # images a forward pass
VERSION = 1  # of the facts: those of another version are made anew


def introduce(
    config: TrainConfig,
    network: MaskedViT,
    bundle: Bundle,
    index_sha256: str,
    place: str,
    here: World,
    pause: Callable[[], None] | None = None,
) -> dict[str, Any] | None:
    """The facts of must.select.portrait about the training split; they are printed by the main process.

    Every process calls this and looks at its share of at most 20,000 images. A run that goes on reads the facts at
    `place`, beside its checkpoints. None where no image can be decoded, which training will tell.

    Args:
        network: zero-shot, in eval mode; it stays as it is.
        pause: called before every batch of a run on one process; it may raise to stop.
    """
    description = bundle.description
    weights = network.classifier.detach().float().cpu().numpy()
    key = hashlib.sha256(
        json.dumps([VERSION, index_sha256, config.split, description.backbone, description.classes]).encode()
        + weights.tobytes()
    ).hexdigest()
    uri = storage.join(place, DATA_FILE)
    facts = remembered(uri, key) if here.is_main else None
    if not any(here.gather(facts is not None)):
        preprocess = preprocess_of(description)
        source = eval_batches(
            config.shards, config.split, preprocess, BATCH, config.workers, here.rank, here.size,
            config.cache, config.cache_gb, config.index_sha256,
        )  # fmt: skip
        seen = see(network, thinned(source), preprocess, here.device, pause if here.size == 1 else None)
        parts = here.gather((seen, source.skipped))
        if here.is_main:
            sight = Sight.joined([part for part, _ in parts])
            facts = look_at(sight, weights, bundle, len(source), sum(skipped for _, skipped in parts))
            if facts:
                remember(uri, {"key": key, "facts": facts})
    if facts:
        print(told(facts), flush=True)
    return facts


def look_at(sight: Sight, weights: Any, bundle: Bundle, images: int, skipped: int) -> dict[str, Any] | None:
    if not len(sight.numbers):
        return None
    neighbours, originals = look_alikes(sight.tokens)
    probabilities = sight.probabilities(weights, bundle.model.logit_factor)[originals]
    copies = len(sight.numbers) - len(originals)
    return portrait(probabilities, neighbours, copies, bundle.description.classes, images, skipped)


def remembered(uri: str, key: str) -> dict[str, Any] | None:
    """The facts of an earlier attempt of this run, if there are any and they are whole."""
    if not storage.exists(uri):
        return None
    try:
        found = json.loads(storage.read_bytes(uri))
        if found["key"] == key:
            told(found["facts"])
            return dict(found["facts"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        print(
            f"warning: {printable(uri)} is damaged ({type(error).__name__}) and is made anew",
            file=sys.stderr,
            flush=True,
        )
    return None


def remember(uri: str, content: dict[str, Any]) -> None:
    """Training does not end for want of it."""
    try:
        storage.write_bytes(uri, json.dumps(content, indent=1).encode())
    except (OSError, storage.UnreachableError) as error:
        print(f"warning: {printable(uri)} cannot be written: {printable(error, 200)}", file=sys.stderr, flush=True)
