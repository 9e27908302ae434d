"""Loads CLIP models through open_clip: by name and pretrained tag, from a checkpoint file, or from a model folder."""

import logging
import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import open_clip
import timm
import torch
from torch import nn

from must.base import storage
from must.base.console import quieted
from must.base.errors import UserError
from must.base.files import MODEL_FOLDER_FILE
from must.base.text import brief, close_to
from must.data.image.preprocess import Preprocess
from must.method.model.fetch import here
from must.method.model.hub import OLD_WEIGHTS_FILE, WEIGHTS_FILE, changed, fetched, first_line
from must.method.model.towers import tower_of

HUB = "hf-hub:"
TOKENIZER_FILE = "bpe.txt.gz"  # a model folder may bring its own byte-pair vocabulary
OPENAIS = {  # transformers' repositories of the same weights, in other files than open_clip reads
    f"openai/clip-vit-{theirs}": f"{ours}-quickgelu/openai"
    for theirs, ours in (
        ("base-patch32", "ViT-B-32"),
        ("base-patch16", "ViT-B-16"),
        ("large-patch14", "ViT-L-14"),
        ("large-patch14-336", "ViT-L-14-336"),
    )
}
TEXT_CONFIG_FILE = "config.json"  # and, of a text tower of transformers, what it is built from


@dataclass(frozen=True)
class Backbone:
    """A whole CLIP model and what is needed to build it, or its image tower alone, again."""

    clip: nn.Module
    tokenizer: Any
    model: str
    pretrained: str
    config: dict[str, Any]  # open_clip's model_cfg
    vocabulary: Path | None  # of a model folder that brings its own
    architecture: dict[str, Any]  # embed_dim, vision_cfg, quick_gelu
    preprocess: Preprocess
    logit_scale: float  # learned factor on the cosine


def load_backbone(model: str, pretrained: str = "", with_tokenizer: bool = True) -> Backbone:
    """Loads `model` (an open_clip name, ``hf-hub:...``, or a folder with open_clip_config.json) in float32 on the CPU.

    A folder, and a checkpoint file as `pretrained`, may be in a bucket.

    Raises:
        ValueError: unknown model or tag, weights that cannot be read or downloaded, or weights of another model.
    """
    model, pretrained = understood(model, pretrained)
    given, model, tag, pretrained = model, here(model), pretrained, here(pretrained)
    asked = f"--model {given}" + (f" --pretrained {tag}" if tag else "")
    name = open_clip_name(model)
    folder = Path(name.removeprefix("local-dir:")) if is_folder(model) else None
    if folder:
        if not (folder / MODEL_FOLDER_FILE).is_file():
            raise UserError(f"--model {given}: no {MODEL_FOLDER_FILE} in this folder")
    elif not model.startswith(HUB):
        check_name(model)
        check_pretrained(model, pretrained)
    options: dict[str, Any] = dict(quick_gelu_option(model, pretrained))
    with hub_files(model, pretrained, asked, weights=False):
        config = config_of(model, name, options)
    check_tower(model, tower_of_config(config))  # before gigabytes are downloaded
    vocabulary = folder / TOKENIZER_FILE if folder and (folder / TOKENIZER_FILE).is_file() else None
    tokenizer_options = {"bpe_path": str(vocabulary)} if vocabulary else {}
    if folder and (folder / TEXT_CONFIG_FILE).is_file() and "hf_model_name" in config["text_cfg"]:
        options["text_cfg"] = {**config["text_cfg"], "hf_model_name": str(folder), "hf_model_pretrained": False}
    with hub_files(model, pretrained, asked):
        try:
            with quiet():
                clip = open_clip.create_model(name, pretrained=pretrained or None, **options)
                tokenizer = open_clip.get_tokenizer(name, **tokenizer_options) if with_tokenizer else None
        except Exception as error:  # open_clip and the hub raise anything from OSError to pickle errors
            if "TorchScript" in str(error):  # as OpenAI's own files are
                raise UserError(
                    f"{asked}: is a TorchScript program, and those are not run; take --pretrained openai, or a folder "
                    "of the same model as a hub has it (docs/models.md)"
                ) from error
            hint = (
                "; install what it needs with: pip install 'must-clip[siglip]'" if "transformers" in str(error) else ""
            )
            raise UserError(f"{asked}: cannot be loaded: {first_line(error)}{hint}") from error
    return Backbone(
        clip=clip.eval(),
        tokenizer=tokenizer,
        model=given,
        pretrained=tag,
        config=config,
        vocabulary=vocabulary,
        architecture=tower_of_config(config),
        preprocess=Preprocess.from_dict(open_clip.get_model_preprocess_cfg(clip)),
        logit_scale=clip.logit_scale.exp().item(),
    )


def open_clip_name(model: str) -> str:
    """What open_clip calls the model."""
    if is_folder(model):
        return f"local-dir:{model.removeprefix('local-dir:')}"
    return model if model.startswith(HUB) else model.replace("/", "-")


@contextmanager
def hub_files(model: str, pretrained: str, asked: str, weights: bool = True) -> Iterator[None]:
    """What lies on a hub, configuration or weights, is in its cache inside the block; nothing is asked for the rest.

    Raises:
        ValueError: it cannot be had; the message begins with `asked`.
    """
    answers = True
    try:
        if model.startswith(HUB):
            names = (WEIGHTS_FILE, OLD_WEIGHTS_FILE) if weights else (MODEL_FOLDER_FILE,)
            answers = fetched(model.removeprefix(HUB), *names)
        elif weights and not is_folder(model) and not Path(pretrained).is_file():
            repository, _, file = open_clip.get_pretrained_cfg(open_clip_name(model), pretrained)["hf_hub"].rpartition(
                "/"
            )
            safe = str(Path(file).with_suffix(".safetensors")) if file else WEIGHTS_FILE
            answers = fetched(repository, *dict.fromkeys([safe, file or OLD_WEIGHTS_FILE]))
    except ValueError as error:
        raise UserError(f"{asked}: {error}") from error
    with changed(HF_HUB_OFFLINE=True) if not answers else nullcontext():  # each further question would take its time
        yield


@contextmanager
def quiet() -> Iterator[None]:
    """open_clip logs its every step to the root logger, and warns of activations that are chosen here."""
    with quieted(logging.WARNING, ""), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="These pretrained weights|'torch.load' received a zip file")
        yield


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
        raise UserError(f"its image tower is called {brief(name)}, which is none of timm's own models")


def config_of(model: str, name: str, options: dict[str, bool]) -> dict[str, Any]:
    """open_clip's model_cfg. Raises ValueError: it cannot be read, or has no image tower."""
    try:
        config = open_clip.get_model_config(name)
        options_of_tokenizer = (config.get("text_cfg") or {}).get("tokenizer_kwargs") or {}
        if options_of_tokenizer.get("trust_remote_code"):
            raise UserError("it asks to run its own code (trust_remote_code), which is not done")
        config["quick_gelu"] = bool(options.get("force_quick_gelu", config.get("quick_gelu", False)))
        tower_of_config(config)
        return config
    except Exception as error:  # a damaged file, or anything that the hub raises
        raise UserError(f"--model {model}: its configuration cannot be read: {first_line(error)}") from error


def architecture_of(model: str, name: str, options: dict[str, bool]) -> dict[str, Any]:
    """What `build_visual` needs. Raises ValueError: the configuration cannot be read."""
    return tower_of_config(config_of(model, name, options))


def tower_of_config(config: dict[str, Any]) -> dict[str, Any]:
    """What `build_visual` needs, of open_clip's model_cfg."""
    return {name: config[name] for name in ("embed_dim", "vision_cfg", "quick_gelu")}


def check_tower(model: str, architecture: dict[str, Any]) -> None:
    """Raises ValueError: the image tower is none that MUST can train. Needs no weights."""
    try:
        with torch.device("meta"):
            visual = build_visual(architecture)
    except Exception as error:
        raise UserError(f"--model {model}: the image tower cannot be built: {first_line(error)}") from error
    try:
        tower_of(visual)
    except ValueError as error:
        raise UserError(f"--model {model}: {error}") from None


def tower_shape(model: str, pretrained: str) -> tuple[int, int, int]:
    """(width, side of the image in pixels, side of a patch) of a model's image tower. Needs no weights.

    Raises:
        ValueError: the model is unknown, or its tower is none that MUST can train.
    """
    model, pretrained = understood(model, pretrained)
    asked, model, pretrained = f"--model {model}", here(model), here(pretrained)
    if not is_folder(model) and not model.startswith(HUB):
        check_name(model)
    with hub_files(model, pretrained, asked, weights=False):
        architecture = architecture_of(model, open_clip_name(model), quick_gelu_option(model, pretrained))
    check_tower(model, architecture)
    with torch.device("meta"):
        visual = build_visual(architecture)
    tower, size = tower_of(visual), visual.image_size
    return tower.width, size[0] if isinstance(size, tuple | list) else size, tower.patch


def understood(model: str, pretrained: str) -> tuple[str, str]:
    """(model, pretrained) of names that people write: NAME/TAG, NAME/FILE, and OpenAI's models by the hub's names.

    Raises:
        ValueError: a tag in the name and another one beside it.
    """
    if is_folder(model) or model.startswith(HUB) or "/" not in model or storage.is_remote(model):
        return model, pretrained
    whole, known = OPENAIS.get(model, model), open_clip.list_models()
    cuts = [(whole[:at], whole[at + 1 :]) for at, sign in enumerate(whole) if sign == "/"]
    name, tag = next((cut for cut in cuts if cut[0].replace("/", "-") in known), ("", ""))
    if model.replace("/", "-") in known or not name:  # ViT-B/16, or another thing altogether
        return model, pretrained
    if pretrained and pretrained != tag:
        raise UserError(f"--model {model} already says --pretrained {tag}; it cannot be {pretrained} too")
    return name, tag


def is_folder(model: str) -> bool:
    return model.startswith("local-dir:") or Path(model).is_dir() or model.startswith(("/", "./", "../"))


def check_name(model: str) -> None:
    known = open_clip.list_models()
    if model.replace("/", "-") not in known:
        near = close_to(model.replace("/", "-"), known, 3)
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        if re.fullmatch(r"[\w.-]+/[\w.-]+", model):
            hint = f"; if it is an open_clip model on a hub, call it {HUB}{model}{hint}"
        raise UserError(f"--model {model}: no open_clip model and no folder{hint}")


def check_pretrained(model: str, pretrained: str) -> None:
    tags = open_clip.list_pretrained_tags_by_model(model.replace("/", "-"))
    if not pretrained:
        raise UserError(f"--model {model}: needs --pretrained, one of {', '.join(tags)}, or a checkpoint file")
    looks_like_path = os.sep in pretrained or Path(pretrained).suffix in (".pt", ".pth", ".bin", ".safetensors")
    if looks_like_path and not Path(pretrained).is_file():
        raise UserError(f"--pretrained {pretrained}: no such file")
    if not Path(pretrained).is_file() and pretrained not in tags:
        raise UserError(f"--pretrained {pretrained}: no tag of {model}; known: {', '.join(tags)}; or a checkpoint file")


def quick_gelu_option(model: str, pretrained: str) -> dict[str, bool]:
    """OpenAI's weights (and some others) want QuickGELU, whatever the model's name says."""
    tag = open_clip.get_pretrained_cfg(model.replace("/", "-"), pretrained) if pretrained else {}
    return {"force_quick_gelu": True} if tag.get("quick_gelu") else {}
