"""A classifier's model as files: an open_clip model folder, so that later stages need no hub.

    MODELS/NAME-KEY/open_clip_config.json        architecture and preprocessing
                    open_clip_model.safetensors  weights; in half precision where that loses nothing
                    ...                          files of the tokenizer, if the model has its own

KEY is a hash of the contents, so that classifiers of the same model share a folder."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import tempfile
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from must.base import storage
from must.base.errors import UserError
from must.base.parameters import require
from must.config.work import MODEL_FOLDER_FILE, PARTS
from must.method.model.hub import OPEN_CLIP_WEIGHTS, ensure_local, first_line
from must.method.model.transformers_folder import TOKENIZER_FILE

if TYPE_CHECKING:
    from must.method.model.backbone import Backbone

MODELS_FOLDER = PARTS["models"].path  # beside the classifier file


def save_model(backbone: Backbone, models: str) -> tuple[str, str]:
    """Writes the model to a folder below `models`, unless it exists; the configuration last, so that a folder
    with it is complete. Returns that folder and the weights' sha256."""
    names = [PurePosixPath(name).name for name in (backbone.model, backbone.pretrained)]
    names[0] = re.sub(r"-[0-9a-f]{12}$", "", names[0])  # the key, if the model is such a folder
    name = re.sub(r"[^\w.-]+", "-", "-".join(filter(None, names))) or "model"
    models = absolute(models)
    beside = None if storage.is_remote(models) else storage.local(models)
    if beside:
        with storage.disk_errors(beside):
            beside.mkdir(parents=True, exist_ok=True)
        storage.remove_leftovers(beside)
    with tempfile.TemporaryDirectory(dir=beside, prefix=storage.TEMPORARY) as scratch:
        write_files(backbone, Path(scratch))
        files = sorted(path for path in Path(scratch).rglob("*") if path.is_file())
        files.sort(key=lambda path: path.name == MODEL_FOLDER_FILE)
        contents = {str(path.relative_to(scratch)): storage.compute_sha256(path) for path in files}
        key = hashlib.sha256(json.dumps(contents, sort_keys=True).encode()).hexdigest()[:12]
        target = storage.join(models, f"{name}-{key}")
        if not is_complete(target, Path(scratch) / OPEN_CLIP_WEIGHTS, contents[OPEN_CLIP_WEIGHTS]):
            for path, file in zip(files, contents, strict=True):
                (storage.move if beside else storage.upload)(path, storage.join(target, file))
    return target, contents[OPEN_CLIP_WEIGHTS]


def write_files(backbone: Backbone, folder: Path) -> None:
    from open_clip import get_model_preprocess_cfg
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        save_file(compact(backbone.clip), folder / OPEN_CLIP_WEIGHTS)
    except SafetensorError as error:  # safetensors raises it instead of OSError
        raise UserError(f"{folder.parent}: the model cannot be written: {first_line(error)}") from error
    config = {"model_cfg": backbone.config, "preprocess_cfg": get_model_preprocess_cfg(backbone.clip)}
    (folder / MODEL_FOLDER_FILE).write_text(json.dumps(config, indent=1, sort_keys=True))
    if hasattr(backbone.tokenizer, "save_pretrained"):  # a tokenizer of transformers
        backbone.tokenizer.save_pretrained(folder)
    elif backbone.vocabulary:
        (folder / TOKENIZER_FILE).write_bytes(backbone.vocabulary)
    if "hf_model_name" in backbone.config["text_cfg"]:
        text: Any = backbone.clip.text
        text.config.save_pretrained(folder)
    for path in folder.rglob("*"):  # safetensors makes files private, and pods of other users read them
        if path.is_file():
            shutil.copymode(folder / MODEL_FOLDER_FILE, path)


def compact(clip: Any) -> dict[str, Any]:
    """The weights, in half precision where that is exact, as for OpenAI's published weights."""
    import torch

    weights, pointers = {}, set()
    for name, value in clip.state_dict().items():
        value = value.detach().cpu().contiguous()
        half = value.half() if value.dtype == torch.float32 else value
        if torch.equal(half.to(value.dtype), value):
            value = half
        if value.data_ptr() in pointers:  # two names for one tensor, which safetensors refuses
            value = value.clone()
        pointers.add(value.data_ptr())
        weights[name] = value
    return weights


def is_complete(folder: str, expected: Path, sha256: str) -> bool:
    """Whether the folder exists with these weights; in a bucket only their size is compared."""
    weights = storage.join(folder, expected.name)
    if not storage.exists(storage.join(folder, MODEL_FOLDER_FILE)) or not storage.exists(weights):
        return False
    if storage.is_remote(folder):
        return storage.size(weights) == expected.stat().st_size
    return storage.compute_sha256(storage.local(weights)) == sha256


def default_models_folder(classifier: str) -> str:
    """The default folder of a classifier's models: beside the classifier file."""
    return storage.join(absolute(classifier).rpartition("/")[0], MODELS_FOLDER)


def absolute(uri: str) -> str:
    """The absolute path; URIs stay as they are."""
    return uri if storage.is_remote(uri) else os.path.normpath(storage.local(uri).absolute())


def resolve_folder(recorded: str, classifier: str) -> str:
    """The model folder that a classifier file names: beside the file, which may have moved, else at the recorded path;
    '' if it names none."""
    if not recorded:
        return ""
    beside = storage.join(default_models_folder(classifier), PurePosixPath(recorded).name)
    folders = beside, recorded
    return next((folder for folder in folders if storage.exists(storage.join(folder, MODEL_FOLDER_FILE))), beside)


def require_model(folder: str) -> None:
    require(
        not folder or storage.exists(storage.join(folder, MODEL_FOLDER_FILE)),
        f"{folder}: the classifier's model is not there, nor in the folder {MODELS_FOLDER} beside the classifier file; "
        f"put it back, {MODEL_FOLDER_FILE} and {OPEN_CLIP_WEIGHTS}, or make the classifier again with "
        "`must classifier`, or the same `must adapt`",
    )


def verified(folder: str, sha256: str) -> str:
    """The folder on this machine."""
    require_model(folder)
    path = Path(ensure_local(folder))
    file = path / OPEN_CLIP_WEIGHTS
    require(
        file.is_file() and storage.compute_sha256(file) == sha256,
        f"{storage.join(folder, OPEN_CLIP_WEIGHTS)}: is missing, damaged or of another model than when the classifier "
        "was made (sha256); delete the folder and run `must classifier` again",
    )
    return str(path)
