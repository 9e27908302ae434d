"""What a run's inputs are made of, and whether its stages could read them: looked at before anything else."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from must import __version__
from must.base import storage
from must.base.parameters import require
from must.deploy.promote.followers import check_address


def look(values: dict[str, Any]) -> str:
    """A sha256 that changes with the class file's content and with the model files at a path.

    Args:
        values: the run's parameters, by the pipeline's names.

    Raises:
        ValueError: what a later stage would refuse: a parameter, the class file, a model that is not there.
    """
    from must.method.model.classifier import BUNDLED_SET, load_class_set
    from must.runtime.check import check_run

    check_run(values)
    check_address(values.get("register", "none"))  # the last stage would ask for it, hours later
    classes, model, pretrained = (values.get(name) or "" for name in ("classes", "model", "pretrained"))
    if classes != BUNDLED_SET:
        load_class_set(classes)
    check_model(model, pretrained)
    return fingerprint(classes, model, pretrained)


def check_model(model: str, pretrained: str) -> None:
    """Raises ValueError: no later stage could load it. Weights are not read."""
    from must.method.model.backbone import MODEL_FOLDER_FILE, check_name, check_pretrained, is_folder

    if storage.is_remote(model):
        config = storage.join(model, MODEL_FOLDER_FILE)
        require(storage.exists(config), f"--model {model}: no {MODEL_FOLDER_FILE} there")
    elif is_folder(model):
        config = storage.join(model.removeprefix("local-dir:"), MODEL_FOLDER_FILE)
        require(storage.exists(config), f"--model {model}: no {MODEL_FOLDER_FILE} in this folder")
    elif not model.startswith("hf-hub:"):
        check_name(model)
    if pretrained and storage.is_remote(pretrained):
        require(storage.exists(pretrained), f"--pretrained {pretrained}: no such file")
    elif not (storage.is_remote(model) or is_folder(model) or model.startswith("hf-hub:")):
        check_pretrained(model, pretrained)


def fingerprint(classes: str, model: str, pretrained: str) -> str:
    parts: list[Any] = [__version__, classes, model, pretrained]
    if is_path(classes):
        parts.append(hashlib.sha256(storage.read_bytes(classes)).hexdigest())
    parts += [contents(place) for place in (model, pretrained)]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


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
