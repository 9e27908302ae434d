"""The first stage: checks that the run's inputs can be read and its outputs written, and computes a hash of them."""

import hashlib
import json
from contextlib import suppress
from typing import Any

from must import __version__
from must.base import storage
from must.base.errors import UserError
from must.base.exits import format_error
from must.base.files import ANSWERS_FILE, INDEX_FILE
from must.base.parameters import require
from must.data.shards.listing import open_source
from must.data.sources.base import ListingReport, no_images
from must.data.sources.files import Folder, Manifest
from must.data.sources.tables import Tables
from must.method.answers.answers_file import read_answers
from must.method.model.hub import HUB, check_model_name, is_folder, parse_model_name
from must.runtime.check import check_run, check_sharding, check_training
from must.runtime.places import WorkUri

PROBE_FILE = ".must-may-write"  # is written and deleted, to test the permissions


def check_inputs(values: dict[str, Any], work_uri: str = "") -> str:
    """Returns a sha256 that changes with the content of the class file and with the files of a local or remote model.
    Refuses what a later stage could not read or write. `values`: all parameters of the run, by the pipeline's names;
    `work_uri`: if given, the folders to which later stages write are tested."""
    from must.method.model.classifier import BUNDLED_SET, load_class_set, require_shares

    check_run(values)
    if work_uri:
        check_writable("work_uri", work_uri)
        registry = WorkUri(work_uri).registry(values.get("registry_uri", ""))
        check_writable("registry_uri", storage.join(registry, values.get("model_name", "model")))
    names = ("classes", "model", "pretrained", "answers")
    classes, model, pretrained, answers = (values.get(name) or "" for name in names)
    given = check_training(values).class_prior == "given"
    if classes != BUNDLED_SET or answers or given:
        class_set = load_class_set(classes)
        if given:
            require_shares(class_set.shares, classes)
        if answers:
            check_answers(answers, list(class_set.names))
    check_model(model, pretrained)
    check_sources(values, WorkUri(work_uri).shards)
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


def check_sources(values: dict[str, Any], shards: str) -> None:
    """Refuses folders without an image, and a split to evaluate on that the images cannot have. Archives, tables and
    lists of files are only looked for: to read them is the work of the stage shard.

    With `append`, the images may be in the shards already, and in their source no more."""
    config = check_sharding(values)
    appends = config.append and storage.exists(storage.join(shards, INDEX_FILE))
    splits, own_splits = {name for name, share in config.split.items() if share}, appends
    for name in ("source", "test_source"):
        if uri := values.get(name):
            source = open_source(uri, config.labels, name, shards, config.image_column, config.label_column)
            own_splits |= isinstance(source, Manifest | Tables)
            splits |= {"test"} if name == "test_source" else set()
            if isinstance(source, Folder) and not appends:
                problems = ListingReport(lambda *_: None)
                require(any(True for _ in source.items(problems)), f"{name} {uri}: {no_images(problems.skipped)}")
    split = values.get("evaluate_split") or ""
    known = ", ".join(sorted(splits))
    require(
        not split or split in splits or bool(own_splits) or not values.get("source"),
        f"evaluate_split {split}: there will be no such split; there are: {known}",
    )


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
