"""What --model may name: a folder, a model on a hub, or an open_clip model. Imports no torch, which takes seconds."""

import sys
from importlib.util import find_spec
from pathlib import Path

from must.base import storage
from must.base.errors import UserError
from must.base.files import MODEL_FOLDER_FILE
from must.base.parameters import require
from must.base.text import close_to
from must.method.model.hub import is_folder
from must.method.model.transformers_folder import CONFIG_FILE

HUB = "hf-hub:"


def list_models() -> list[str]:
    """The names of open_clip's models, from its files if it is not imported; [] without open_clip."""
    if "open_clip" in sys.modules:  # a program may have added models
        return list(sys.modules["open_clip"].list_models())
    spec = find_spec("open_clip")
    folder = Path(spec.origin).with_name("model_configs") if spec and spec.origin else Path()
    return sorted(path.stem for path in folder.glob("*.json"))


def check_model_name(model: str, pretrained: str = "") -> None:
    """Raises UserError: there is no such folder, or no such open_clip model; or a folder is given other
    weights, by a tag. A hub is not asked."""
    if storage.is_remote(model) or is_folder(model):
        folder = model.removeprefix("local-dir:")
        exists = any(storage.exists(storage.join(folder, name)) for name in (MODEL_FOLDER_FILE, CONFIG_FILE))
        require(exists, f"--model {model}: no {MODEL_FOLDER_FILE} in this folder, nor {CONFIG_FILE} of transformers")
        file = storage.is_remote(pretrained) or Path(pretrained).is_file()
        require(not pretrained or file, f"--pretrained {pretrained}: {model} has weights of its own; leave it out")
    elif not model.startswith(HUB) and list_models():
        check_name(parse_model_name(model, "")[0])


def parse_model_name(model: str, pretrained: str) -> tuple[str, str]:
    """(model, pretrained), after splitting names like NAME/TAG and NAME/FILE."""
    if is_folder(model) or model.startswith(HUB) or "/" not in model or storage.is_remote(model):
        return model, pretrained
    known = list_models()
    splits = [(model[:i], model[i + 1 :]) for i, character in enumerate(model) if character == "/"]
    name, tag = next((split for split in splits if split[0].replace("/", "-") in known), ("", ""))
    if model.replace("/", "-") in known or not name:  # ViT-B/16, or an unknown name
        return model, pretrained
    if pretrained and pretrained != tag:
        raise UserError(f"--model {model} already says --pretrained {tag}; it cannot be {pretrained} too")
    return name, tag


def check_name(model: str) -> None:
    known = list_models()
    if model.replace("/", "-") not in known:
        similar = close_to(model.replace("/", "-"), known, 3)
        hint = f"; did you mean {' or '.join(similar)}?" if similar else ""
        raise UserError(f"--model {model}: no open_clip model and no folder{hint} (a model on a hub is {HUB}TEAM/NAME)")
