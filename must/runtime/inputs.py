"""The first stage: checks that the run's inputs can be read and its outputs written, and computes a hash of them."""

import hashlib
import json
from contextlib import suppress
from typing import Any

from must import __version__
from must.base import storage
from must.base.errors import UserError
from must.base.exits import format_error
from must.base.files import ANSWERS_FILE
from must.base.parameters import require
from must.method.answers.answers_file import read_answers
from must.method.model.hub import HUB, check_model_name, is_folder, parse_model_name
from must.runtime.check import check_run
from must.runtime.places import WorkUri

PROBE_FILE = ".must-may-write"  # is written and deleted, to test the permissions


def check_inputs(values: dict[str, Any], work_uri: str = "") -> str:
    """Returns a sha256 that changes with the content of the class file and with the files of a local or remote model.
    Refuses what a later stage could not read or write. `values`: the run's parameters, by the pipeline's names;
    `work_uri`: if given, the folders to which later stages write are tested."""
    from must.method.model.classifier import BUNDLED_SET, load_class_set

    check_run(values)
    if work_uri:
        check_writable("work_uri", work_uri)
        registry = WorkUri(work_uri).registry(values.get("registry_uri", ""))
        check_writable("registry_uri", storage.join(registry, values.get("model_name", "model")))
    names = ("classes", "model", "pretrained", "answers")
    classes, model, pretrained, answers = (values.get(name) or "" for name in names)
    if classes != BUNDLED_SET or answers:
        class_set = load_class_set(classes)
        if answers:
            check_answers(answers, list(class_set.names))
    check_model(model, pretrained)
    return inputs_fingerprint(classes, model, pretrained)


def check_writable(name: str, uri: str) -> None:
    if not uri:
        return
    file = storage.join(uri, PROBE_FILE)
    try:
        storage.write_bytes(file, b"")
        storage.read_bytes(file)
    except storage.TransientError:
        raise
    except (ValueError, OSError) as error:
        raise UserError(f"{name} {uri}: cannot be read and written: {format_error(error)}") from None
    with suppress(ValueError, OSError):  # the permission to write may not include deleting
        storage.delete(file)


def check_answers(uri: str, classes: list[str]) -> None:
    require(uri.endswith(".jsonl"), f"answers {uri}: expected {ANSWERS_FILE} of `must review`")
    require(storage.exists(uri), f"answers {uri}: no such file")
    require(bool(read_answers(uri, classes)), f"answers {uri}: there are no answers in it with a class of this run")


def check_model(model: str, pretrained: str) -> None:
    """Reads no weights; imports no torch for a folder."""
    check_model_name(model, pretrained)
    if pretrained and storage.is_remote(pretrained):
        require(storage.exists(pretrained), f"--pretrained {pretrained}: no such file")
    elif not (storage.is_remote(model) or is_folder(model) or model.startswith(HUB)):
        from must.method.model.backbone import check_pretrained

        check_pretrained(*parse_model_name(model, pretrained))


def inputs_fingerprint(classes: str, model: str, pretrained: str) -> str:
    parts: list[Any] = [__version__, classes, model, pretrained]
    if "/" in classes or classes.endswith((".yaml", ".yml", ".json", ".txt")):
        parts.append(hashlib.sha256(storage.read_bytes(classes)).hexdigest())
    parts += [read_versions(uri) for uri in (model, pretrained)]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def read_versions(uri: str) -> list[Any]:
    """Sizes and generations of a file, or of the files in a folder; empty for the name of a model."""
    if not uri:
        return []
    if storage.generation(uri) is not None and (storage.is_remote(uri) or storage.local(uri).is_file()):
        return [storage.size(uri), storage.generation(uri)]
    entries = sorted(storage.list_existing(uri))
    return [[entry.name, entry.size, storage.generation(storage.join(uri, entry.name))] for entry in entries]
