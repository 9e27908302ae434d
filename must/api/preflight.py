"""Preflight checks of a stage's inputs, before torch is imported: a wrong path is reported at once, not after seconds.

The checks read files with the same functions as the stage itself, so their error messages are the same. A stage called
from Python can do without them: it raises the same errors, later."""

import os
import re
from pathlib import Path
from typing import Any

from must.base import storage
from must.base.files import DESCRIPTION_FILE, METRICS_FILE, RECORD_FILE, REFINED_FILE
from must.base.parameters import flag, list_parameters, require
from must.base.processes import check_processes
from must.config.work import PARTS


def preflight(config: Any) -> None:
    """Checks every given parameter that has a kind, in the order of their declaration."""
    if isinstance(workers := getattr(config, "workers", 0), int):
        check_processes(workers, "--workers")
    check_device(getattr(config, "device", "auto"))
    for field in list_parameters(type(config)):
        kind, value = field.metadata["kind"], getattr(config, field.name)
        if value and ("output" in kind or kind == "apart"):
            check_output(value, flag(field.name), kind)
            if field.metadata["work"].startswith("to ") and kind == "output":
                own = field.metadata["work"].removeprefix("to ").format(**vars(config))
                refuse_folder_of_others(value, flag(field.name), own)
        elif value and kind:
            check_input(config, kind, value, flag(field.name))


def check_device(device: str) -> None:
    known = re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", device)
    require(known is not None, f"--device {device}: expected auto, cpu, cuda, cuda:N or mps")


def refuse_folder_of_others(uri: str, flag: str, own: str) -> None:
    """Raises UserError: the folder is one that another stage has written. `own`: the stage's place in WORK."""
    files = {"": RECORD_FILE, "report": METRICS_FILE}
    files |= {part.path: part.marker for part in PARTS.values() if part.marker}
    for folder, name in files.items():
        others = folder != own and not storage.is_remote(uri) and (storage.local(uri) / name).exists()
        require(not others, f"{flag} {uri}: holds {name} of another command; choose another folder")


KINDS = "class set", "model", "metrics", "refined", "bundle", "classifier", "baseline", "shards", "preset", "answers"


def check_input(config: Any, kind: str, value: str, flag: str) -> None:
    """Reads what a parameter names, of one of KINDS."""
    from must.data.format.index import load_index
    from must.evaluation.result import read_metrics
    from must.method.answers.answers_file import answers_file, read_answers
    from must.method.model.classifier import BUNDLED_SET, load_class_set, read_header
    from must.method.model.description import load_description
    from must.method.model.hub import check_model_name
    from must.method.train.recipe import AUTO, preset_rows, published

    assert kind in KINDS, kind
    if kind == "class set" and value != BUNDLED_SET:  # the bundled set is open_clip's, and reading it imports torch
        load_class_set(value)
    elif kind == "model":
        check_model_name(value, config.pretrained)
    elif kind == "metrics":
        read_metrics(value)
    elif kind == "refined":
        storage.read_json(storage.join(value, REFINED_FILE), flag)
    elif kind == "bundle":
        load_description(value)
    elif kind == "classifier" or (kind == "baseline" and not storage.exists(storage.join(value, DESCRIPTION_FILE))):
        check_classifier(config, value, flag)
    elif kind == "shards":
        load_index(value, getattr(config, "index_sha256", "")).list_shards(config.split)
    elif kind == "preset" and value != AUTO:
        published(value, config.model or ("" if "*" in preset_rows(value) else read_header(config.classifier).model))
    elif kind == "answers":
        require(storage.exists(answers_file(value)), f"{flag} {value}: no answers.jsonl there; `must review` writes it")
        read_answers(value)


def check_classifier(config: Any, file: str, flag: str) -> None:
    """A classifier file, and its model folder unless the parameters name another model."""
    from must.method.model.classifier import read_header, require_shares
    from must.method.model.folder import require_model

    header = read_header(file, flag)
    if not (getattr(config, "pretrained", "") or (hasattr(config, "pretrained") and config.model)):
        require_model(header.model_folder)
    if getattr(config, "class_prior", "") == "given":
        require_shares(header.shares, file)


def require_apart(folder: Path, label: str) -> None:
    """Raises UserError: the folder is a model or inside one, where a run must not write. `label` begins the message."""
    model = next((path for path in (folder, *folder.parents) if (path / DESCRIPTION_FILE).is_file()), None)
    require(model is None, f"{label}: is in the model {model}; choose a folder beside it")


def check_output(uri: str, flag: str, kind: str = "output") -> None:
    """Checks paths on this machine only: a bucket's permissions show when it is written to. A model may be trained
    again in its place ("bundle output"), but not in another one."""
    if storage.is_remote(uri):
        return
    path, is_file = storage.local(uri).absolute(), kind == "output file"
    require(
        not (path.is_dir() if is_file else path.is_file()),
        f"{flag} {uri}: is a {'folder; give a file' if is_file else 'file; give a folder'}",
    )
    existing = path if path.exists() else next(parent for parent in path.parents if parent.exists())
    require(existing == path or existing.is_dir(), f"{flag} {uri}: cannot be written: {existing} is no folder")
    require(os.access(existing, os.W_OK), f"{flag} {uri}: cannot be written: no permission for {existing}")
    if kind in ("apart", "bundle output"):
        require_apart(path if kind == "apart" else path.parent, f"{flag} {uri}")
    is_work = kind == "apart" and (path / RECORD_FILE).exists()
    require(not is_work, f"{flag} {uri}: is a folder of `must adapt`; choose another one")
