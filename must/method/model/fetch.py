"""Models in a bucket: fetched to this machine once for what they hold now, and shared by its processes."""

import hashlib
import json
import logging
import os
import shutil
import tempfile
from pathlib import Path, PurePosixPath

from must.base import storage
from must.base.lock import in_turn
from must.base.names import listed
from must.base.parameters import require

logger = logging.getLogger(__name__)


def here(place: str) -> str:
    """A path of this machine for a gs:// or file:// folder or file; anything else comes back as it is.

    Raises:
        ValueError: there is nothing at the URI.
    """
    if not place or not storage.is_remote(place):
        return place.removeprefix("file://")
    single = storage.exists(place)
    names = [""] if single else listed(place)
    require(bool(names), f"{place}: there is no model; expected a folder with open_clip_config.json or a checkpoint")
    uris = {name: storage.join(place, name) if name else place for name in names}
    contents = [[name, storage.size(uri), storage.generation(uri)] for name, uri in uris.items()]
    target = folder() / hashlib.sha256(json.dumps([place, contents]).encode()).hexdigest()[:32]
    with in_turn(target.with_suffix(".lock")):  # the others find what the first has fetched
        if not target.exists():
            fetch(uris, target, PurePosixPath(place).name)
    return str(target / PurePosixPath(place).name) if single else str(target)


def fetch(uris: dict[str, str], target: Path, only: str) -> None:
    """Downloads the files to `target`, which appears when all of it is there."""
    logger.info(f"fetching the model from {min(uris.values(), key=len)} ({len(uris)} files)")
    storage.remove_leftovers(target.parent)
    unfinished = Path(tempfile.mkdtemp(dir=target.parent, prefix=storage.TEMPORARY))
    try:
        for name, uri in uris.items():
            storage.download(uri, unfinished / (name or only))
        unfinished.replace(target)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def folder() -> Path:
    """A pod's scratch space, or the user's cache."""
    place = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "must" / "models"
    place.mkdir(parents=True, exist_ok=True)
    return place
