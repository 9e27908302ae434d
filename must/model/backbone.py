"""Loads CLIP models through open_clip: by name and pretrained tag, from a checkpoint file, or from a model folder."""

from __future__ import annotations

import logging
import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import open_clip
import timm
import torch
from torch import nn

from must.image.preprocess import Preprocess
from must.model.fetch import here
from must.model.towers import tower_of
from must.text import brief, close_to

MODEL_FOLDER_FILE = "open_clip_config.json"
TOKENIZER_FILE = "bpe.txt.gz"  # a model folder may bring its own byte-pair vocabulary


@dataclass(frozen=True)
class Backbone:
    """A whole CLIP model and what is needed to build its image tower again without the weights."""

    clip: nn.Module
    tokenizer: Any
    model: str
    pretrained: str
    architecture: dict[str, Any]  # embed_dim, vision_cfg, quick_gelu
    preprocess: Preprocess
    logit_scale: float  # learned factor on the cosine


def load_backbone(model: str, pretrained: str = "", with_tokenizer: bool = True) -> Backbone:
    """Loads `model` (an open_clip name, ``hf-hub:...``, or a folder with open_clip_config.json) in float32 on the CPU.

    A folder, and a checkpoint file as `pretrained`, may lie in a bucket.

    Raises:
        ValueError: unknown model or tag, weights that cannot be read or downloaded, or weights of another model.
    """
    given, model, tag, pretrained = model, here(model), pretrained, here(pretrained)
    name, tokenizer_options = model, {}
    if is_folder(model):
        folder = Path(model.removeprefix("local-dir:"))
        if not (folder / MODEL_FOLDER_FILE).is_file():
            raise ValueError(f"--model {given}: no {MODEL_FOLDER_FILE} in this folder")
        name = f"local-dir:{folder}"
        if (folder / TOKENIZER_FILE).is_file():
            tokenizer_options["bpe_path"] = str(folder / TOKENIZER_FILE)
    elif not model.startswith("hf-hub:"):
        check_name(model)
        check_pretrained(model, pretrained)
    options = quick_gelu_option(model, pretrained)
    architecture = architecture_of(model, name, options)
    check_tower(model, architecture)  # before gigabytes are downloaded
    try:
        with quiet():
            clip = open_clip.create_model(name, pretrained=pretrained or None, **options)
            tokenizer = open_clip.get_tokenizer(name, **tokenizer_options) if with_tokenizer else None
    except Exception as error:  # open_clip and the hub raise anything from OSError to pickle errors
        hint = "; install what it needs with: pip install 'must-clip[siglip]'" if "transformers" in str(error) else ""
        raise ValueError(
            f"--model {model} --pretrained {pretrained or '(none)'}: cannot be loaded: {first_line(error)}{hint}"
        ) from error
    return Backbone(
        clip=clip.eval(),
        tokenizer=tokenizer,
        model=given,
        pretrained=tag,
        architecture=architecture,
        preprocess=Preprocess.from_dict(open_clip.get_model_preprocess_cfg(clip)),
        logit_scale=clip.logit_scale.exp().item(),
    )


@contextmanager
def quiet() -> Iterator[None]:
    """open_clip logs its every step to the root logger, and warns of activations that are chosen here."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(max(logging.WARNING, level))
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="These pretrained weights")
            yield
    finally:
        root.setLevel(level)


def build_visual(architecture: dict[str, Any]) -> Any:
    """The image tower of a stored architecture, with random weights and no access to any hub.

    The text tower that open_clip's constructor insists on is made as small as it can be, and dropped.

    Raises:
        ValueError: the architecture names what would have to be fetched.
    """
    check_fetches_nothing(architecture)
    text = {"context_length": 1, "vocab_size": 1, "width": 8, "heads": 1, "layers": 1}
    return open_clip.CLIP(
        embed_dim=architecture["embed_dim"],
        vision_cfg={**architecture["vision_cfg"], "timm_model_pretrained": False},
        text_cfg=text,
        quick_gelu=architecture["quick_gelu"],
    ).visual


def check_fetches_nothing(architecture: dict[str, Any]) -> None:
    """A tower of timm's goes by the name of one of its own models: else it would ask a hub, or read another folder."""
    name = architecture["vision_cfg"].get("timm_model_name")
    if name is not None and not (isinstance(name, str) and re.fullmatch(r"[\w.-]+", name) and timm.is_model(name)):
        raise ValueError(f"its image tower is called {brief(name)}, which is none of timm's own models")


def architecture_of(model: str, name: str, options: dict[str, bool]) -> dict[str, Any]:
    """What `build_visual` needs. Raises ValueError: the configuration cannot be read."""
    try:
        config = open_clip.get_model_config(name)
        options_of_tokenizer = (config.get("text_cfg") or {}).get("tokenizer_kwargs") or {}
        if options_of_tokenizer.get("trust_remote_code"):
            raise ValueError("it asks to run its own code (trust_remote_code), which is not done")
        return {
            "embed_dim": config["embed_dim"],
            "vision_cfg": config["vision_cfg"],
            "quick_gelu": bool(options.get("force_quick_gelu", config.get("quick_gelu", False))),
        }
    except Exception as error:  # a damaged file, or anything that the hub raises
        raise ValueError(f"--model {model}: its configuration cannot be read: {first_line(error)}") from error


def check_tower(model: str, architecture: dict[str, Any]) -> None:
    """Raises ValueError: the image tower is none that MUST can train. Needs no weights."""
    try:
        with torch.device("meta"):
            visual = build_visual(architecture)
    except Exception as error:
        raise ValueError(f"--model {model}: the image tower cannot be built: {first_line(error)}") from error
    try:
        tower_of(visual)
    except ValueError as error:
        raise ValueError(f"--model {model}: {error}") from None


def tower_shape(model: str, pretrained: str) -> tuple[int, int, int]:
    """(width, side of the image in pixels, side of a patch) of a model's image tower. Needs no weights.

    Raises:
        ValueError: the model is unknown, or its tower is none that MUST can train.
    """
    model, pretrained = here(model), here(pretrained)
    if not is_folder(model) and not model.startswith("hf-hub:"):
        check_name(model)
    name = f"local-dir:{model.removeprefix('local-dir:')}" if is_folder(model) else model
    architecture = architecture_of(model, name, quick_gelu_option(model, pretrained))
    check_tower(model, architecture)
    with torch.device("meta"):
        visual = build_visual(architecture)
    tower, size = tower_of(visual), visual.image_size
    return tower.width, size[0] if isinstance(size, tuple | list) else size, tower.patch


def is_folder(model: str) -> bool:
    return model.startswith("local-dir:") or Path(model).is_dir() or model.startswith(("/", "./", "../"))


def check_name(model: str) -> None:
    known = open_clip.list_models()
    if model.replace("/", "-") not in known:
        near = close_to(model.replace("/", "-"), known, 3)
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        raise ValueError(f"--model {model}: no open_clip model and no folder{hint}")


def check_pretrained(model: str, pretrained: str) -> None:
    tags = open_clip.list_pretrained_tags_by_model(model.replace("/", "-"))
    if not pretrained:
        raise ValueError(f"--model {model}: needs --pretrained, one of {', '.join(tags)}, or a checkpoint file")
    looks_like_path = os.sep in pretrained or Path(pretrained).suffix in (".pt", ".pth", ".bin", ".safetensors")
    if looks_like_path and not Path(pretrained).is_file():
        raise ValueError(f"--pretrained {pretrained}: no such file")
    if not Path(pretrained).is_file() and pretrained not in tags:
        raise ValueError(
            f"--pretrained {pretrained}: no tag of {model}; known: {', '.join(tags)}; or a checkpoint file"
        )


def quick_gelu_option(model: str, pretrained: str) -> dict[str, bool]:
    """OpenAI's weights (and some others) want QuickGELU, whatever the model's name says."""
    tag = open_clip.get_pretrained_cfg(model.replace("/", "-"), pretrained) if pretrained else {}
    return {"force_quick_gelu": True} if tag.get("quick_gelu") else {}


def first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines)[:300] if lines else type(error).__name__
