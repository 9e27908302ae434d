"""Preflight checks of a stage's inputs, before torch is imported: a wrong path is reported at once, not after seconds.

The checks read files with the same functions as the stage itself, so their error messages are the same. A stage called
from Python can do without them: it raises the same errors, later.
"""

import os
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from must.base import storage
from must.base.files import DESCRIPTION_FILE, RECORD_FILE, REFINED_FILE
from must.base.parameters import flag, list_parameters, require
from must.base.processes import check_processes


def preflight(config: Any) -> None:
    """Checks every given parameter with the function in CHECKS for its kind, in the order of their declaration."""
    if isinstance(workers := getattr(config, "workers", 0), int):
        check_processes(workers, "--workers")
    check_device(getattr(config, "device", "auto"))
    for field in list_parameters(type(config)):
        if value := getattr(config, field.name):
            CHECKS[field.metadata["kind"]](config, value, flag(field.name))


def check_device(device: str) -> None:
    known = re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", device)
    require(known is not None, f"--device {device}: expected auto, cpu, cuda, cuda:N or mps")


def check_class_set(config: Any, classes: str, flag: str) -> None:
    from must.method.model.classifier import BUNDLED_SET, load_class_set

    if classes != BUNDLED_SET:  # the bundled set is open_clip's, and reading it imports torch
        load_class_set(classes)


def check_bundle(config: Any, uri: str, flag: str) -> None:
    from must.method.model.description import load_description

    load_description(uri)


def check_backbone(config: Any, model: str, flag: str) -> None:
    from must.method.model.hub import check_model_name

    check_model_name(model, config.pretrained)


def check_metrics(config: Any, file: str, flag: str) -> None:
    from must.evaluation.result import read_metrics

    read_metrics(file)


def check_refined(config: Any, folder: str, flag: str) -> None:
    storage.read_json(storage.join(folder, REFINED_FILE), flag)


def check_classifier(config: Any, file: str, flag: str) -> None:
    """A classifier file, and its model folder unless the parameters name another model."""
    from must.method.model.classifier import read_header, require_shares
    from must.method.model.folder import require_model

    header = read_header(file, flag)
    if not (getattr(config, "pretrained", "") or (hasattr(config, "pretrained") and config.model)):
        require_model(header.model_folder)
    if getattr(config, "class_prior", "") == "given":
        require_shares(header.shares, file)


def check_baseline(config: Any, uri: str, flag: str) -> None:
    """A classifier file or a bundle."""
    if not storage.exists(storage.join(uri, DESCRIPTION_FILE)):
        check_classifier(config, uri, flag)


def check_shards(config: Any, uri: str, flag: str) -> None:
    from must.data.format.index import load_index

    index = load_index(uri, getattr(config, "index_sha256", ""))
    index.list_shards(config.split)


def check_preset(config: Any, name: str, flag: str) -> None:
    from must.method.model.classifier import read_header
    from must.method.train.recipe import AUTO, preset_rows, published

    if name != AUTO:
        published(name, config.model or ("" if "*" in preset_rows(name) else read_header(config.classifier).model))


def check_answers(config: Any, uri: str, flag: str) -> None:
    from must.method.answers.answers_file import answers_file, read_answers

    require(storage.exists(answers_file(uri)), f"{flag} {uri}: no answers.jsonl there; `must review` writes it")
    read_answers(uri)


def require_apart(folder: Path, label: str) -> None:
    """Raises UserError: the folder is a model or inside one, where a run must not write. `label` begins the message."""
    model = next((path for path in (folder, *folder.parents) if (path / DESCRIPTION_FILE).is_file()), None)
    require(model is None, f"{label}: is in the model {model}; choose a folder beside it")


def check_apart(config: Any, uri: str, flag: str) -> None:
    check_output(config, uri, flag)
    if not storage.is_remote(uri):
        folder = storage.local(uri).absolute()
        require_apart(folder, f"{flag} {uri}")
        require(not (folder / RECORD_FILE).exists(), f"{flag} {uri}: is a folder of `must adapt`; choose another one")


def check_bundle_output(config: Any, uri: str, flag: str) -> None:
    """A model may be trained again in its place, but not in another one."""
    check_output(config, uri, flag)
    if not storage.is_remote(uri):
        require_apart(storage.local(uri).absolute().parent, f"{flag} {uri}")


def check_output(config: Any, uri: str, flag: str, is_file: bool = False) -> None:
    """Checks paths on this machine only: a bucket's permissions show when it is written to."""
    if storage.is_remote(uri):
        return
    path = storage.local(uri).absolute()
    require(
        not (path.is_dir() if is_file else path.is_file()),
        f"{flag} {uri}: is a {'folder; give a file' if is_file else 'file; give a folder'}",
    )
    existing = path if path.exists() else next(parent for parent in path.parents if parent.exists())
    require(existing == path or existing.is_dir(), f"{flag} {uri}: cannot be written: {existing} is no folder")
    require(os.access(existing, os.W_OK), f"{flag} {uri}: cannot be written: no permission for {existing}")


CHECKS: dict[str, Callable[[Any, Any, str], None]] = {
    "": lambda config, value, flag: None,
    "class set": check_class_set,
    "model": check_backbone,
    "metrics": check_metrics,
    "refined": check_refined,
    "bundle": check_bundle,
    "classifier": check_classifier,
    "baseline": check_baseline,
    "shards": check_shards,
    "preset": check_preset,
    "output": check_output,
    "output file": partial(check_output, is_file=True),
    "bundle output": check_bundle_output,
    "apart": check_apart,
    "answers": check_answers,
}
