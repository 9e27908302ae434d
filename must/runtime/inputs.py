"""What a run's inputs are made of, and whether its stages could read them: looked at before anything else."""

import hashlib
import json
from contextlib import suppress
from typing import Any

from must import __version__
from must.base import storage
from must.base.errors import UserError
from must.base.exits import line_of
from must.base.files import MODEL_FOLDER_FILE
from must.base.parameters import require
from must.deploy.promote.followers import check_access
from must.method.model.hub import is_folder
from must.method.model.transformers_folder import CONFIG_FILE
from must.runtime.places import WorkUri

URI_PARAMETERS = ("predict_uri", "tensorboard_uri")  # of cluster.yaml
PROBE_FILE = ".must-may-write"  # a file that is written and deleted


def check_inputs(values: dict[str, Any], work_uri: str = "") -> str:
    """A sha256 that changes with the class file's content and with the model's files at a path.

    Args:
        values: the run's parameters, by the pipeline's names; `predict_uri` and `tensorboard_uri` of cluster.yaml.
        work_uri: where it is given, the places that later stages write to are tried.

    Raises:
        ValueError: what a later stage would refuse: a parameter, the class file, a model that is not there, a place
            that cannot be written to, a registry that does not let us in; TransientError where that may pass.
    """
    from must.method.model.classifier import BUNDLED_SET, load_class_set
    from must.runtime.check import check_run

    check_run(values)
    try:  # the last stage would, hours later
        check_access(values.get("register", "none"), values.get("model_name", "model"))
    except ValueError as error:
        raise type(error)(str(error).removesuffix("; nothing was promoted")) from None
    if work_uri:
        check_writable("work_uri", work_uri)
        registry = WorkUri(work_uri).registry(values.get("registry_uri", ""))
        check_writable("registry_uri", storage.join(registry, values.get("model_name", "model")))
        for name in URI_PARAMETERS:
            check_writable(name, values.get(name, ""))
    classes, model, pretrained = (values.get(name) or "" for name in ("classes", "model", "pretrained"))
    if classes != BUNDLED_SET:
        load_class_set(classes)
    check_model(model, pretrained)
    return inputs_fingerprint(classes, model, pretrained)


def check_writable(name: str, place: str) -> None:
    """Raises ValueError: no file can be written there and read; TransientError where it may be later. Nothing stays."""
    if not place:
        return
    file = storage.join(place, PROBE_FILE)
    try:
        storage.write_bytes(file, b"")
        storage.read_bytes(file)
    except storage.TransientError:
        raise
    except (ValueError, OSError) as error:
        raise UserError(f"{name} {place}: cannot be read and written: {line_of(error)}") from None
    with suppress(ValueError, OSError):  # who may write need not be allowed to delete
        storage.delete(file)


def check_model(model: str, pretrained: str) -> None:
    """Raises ValueError: no later stage could load it. Weights are not read, nor is torch imported for a folder."""
    in_folder = storage.is_remote(model) or is_folder(model)
    if in_folder:
        folder = model.removeprefix("local-dir:")
        there = any(storage.exists(storage.join(folder, name)) for name in (MODEL_FOLDER_FILE, CONFIG_FILE))
        require(there, f"--model {model}: no {MODEL_FOLDER_FILE} there, nor {CONFIG_FILE} of transformers")
    named = not in_folder and not model.startswith("hf-hub:")
    if named:
        from must.method.model.backbone import check_name, check_pretrained

        check_name(model)
    if pretrained and storage.is_remote(pretrained):
        require(storage.exists(pretrained), f"--pretrained {pretrained}: no such file")
    elif named:
        check_pretrained(model, pretrained)


def inputs_fingerprint(classes: str, model: str, pretrained: str) -> str:
    parts: list[Any] = [__version__, classes, model, pretrained]
    if "/" in classes or classes.endswith((".yaml", ".yml", ".json", ".txt")):
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
