"""What a run's inputs are made of: Kubeflow's cache sees names and must be told when what they name has changed."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from must import __version__, storage
from must.parameters import require


def fingerprint(classes: str, model: str, pretrained: str) -> str:
    """A sha256 that changes with the class file's content and with model files behind a path.

    Raises:
        ValueError: the class file does not exist.
    """
    parts: list[Any] = [__version__, classes, model, pretrained]
    if is_path(classes):
        require(storage.exists(classes), f"classes {classes}: no such file")
        parts.append(hashlib.sha256(storage.read_bytes(classes)).hexdigest())
    parts += [contents(place) for place in (model, pretrained)]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def training_settings(settings: dict[str, Any], preset: str, epochs: int) -> dict[str, Any]:
    """The parameters of `must train` that a run of the pipeline gives: `epochs` wins unless it is 0."""
    return {**settings, "preset": preset, **({"epochs": epochs} if epochs else {})}


def sharding_settings(settings: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    """The parameters of `must shard`: the pipeline's `own`, and others that a run gives.

    Raises:
        ValueError: `settings` has one that the pipeline itself gives.
    """
    twice = ", ".join(name for name in settings if name.replace("-", "_") in own)
    require(not twice, f"shard_settings: {twice}: a parameter of the pipeline or set by it; take it out")
    return own | {name.replace("-", "_"): value for name, value in settings.items()}


def contents(place: str) -> list[Any]:
    """Sizes and generations of the files there; nothing for a name that open_clip knows."""
    if not place:
        return []
    try:
        if storage.generation(place) is not None and (storage.is_remote(place) or storage.local(place).is_file()):
            return [storage.size(place), storage.generation(place)]
        entries = sorted(storage.list_files(place))
    except (FileNotFoundError, NotADirectoryError):
        return []
    return [[entry.name, entry.size, storage.generation(storage.join(place, entry.name))] for entry in entries]


def is_path(name: str) -> bool:
    return "/" in name or name.endswith((".yaml", ".yml", ".json", ".txt"))
