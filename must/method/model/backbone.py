"""Loads CLIP models through open_clip: by name and pretrained tag, from a checkpoint file, or from a model folder."""

import logging
import os
import re
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import open_clip
import timm
import torch
from torch import Tensor, nn

from must.base import storage
from must.base.console import quieted
from must.base.errors import UserError
from must.base.files import MODEL_FOLDER_FILE
from must.base.text import brief, close_to
from must.data.image.preprocess import Preprocess
from must.method.model.hub import (
    OLD_WEIGHTS_FILE,
    OPEN_CLIP_WEIGHTS,
    as_folder,
    ensure_local,
    fetch_weights,
    fetched,
    first_line,
    is_folder,
    patched_constants,
    same_kind,
)
from must.method.model.towers import tower_of
from must.method.model.transformers_folder import TOKENIZER_FILE, as_open_clips, is_transformers, read_weights
from must.method.model.transformers_names import from_transformers
from must.method.model.weights_file import AVERAGED, compared, of_transformers, weights_of

logger = logging.getLogger(__name__)

HUB = "hf-hub:"
CHECKPOINT_ENDINGS = (".pt", ".pth", ".bin", ".ckpt", ".safetensors")
TEXT_CONFIG_FILE = "config.json"  # and, of a text tower of transformers, what it is built from


@dataclass(frozen=True)
class Backbone:
    """A whole CLIP model and what is needed to build it, or its image tower alone, again."""

    clip: nn.Module
    tokenizer: Any
    model: str
    pretrained: str
    config: dict[str, Any]  # open_clip's model_cfg
    vocabulary: bytes | None  # of a model folder that brings its own
    architecture: dict[str, Any]  # embed_dim, vision_cfg, quick_gelu
    preprocess: Preprocess
    logit_scale: float  # learned factor on the cosine


def load_backbone(model: str, pretrained: str = "", with_tokenizer: bool = True) -> Backbone:
    """Loads `model` in float32 on the CPU: an open_clip name, ``hf-hub:...``, or a folder of open_clip or transformers.

    A folder, and a checkpoint file as `pretrained`, may be in a bucket.

    Raises:
        ValueError: unknown model or tag, weights that cannot be read or downloaded, or weights of another model.
    """
    given, tag = parse_model_name(model, pretrained)
    model, pretrained = ensure_local(given), ensure_local(tag)
    asked = f"--model {given}" + (f" --pretrained {tag}" if tag else "")
    with opened(model, asked) as (name, theirs):
        if not is_folder(name) and not name.startswith(HUB):
            check_name(model)
            check_pretrained(model, pretrained)
        options: dict[str, Any] = dict(quick_gelu_option(name, pretrained))
        with hub_files(name, pretrained, asked, weights=False):
            config = config_of(given, name, options)
        check_tower(given, tower_of_config(config))  # before gigabytes are downloaded
        folder = Path(name.removeprefix("local-dir:")) if is_folder(name) else None
        vocabulary = folder / TOKENIZER_FILE if folder and (folder / TOKENIZER_FILE).is_file() else None
        tokenizer_options = {"bpe_path": str(vocabulary)} if vocabulary else {}
        if folder and (folder / TEXT_CONFIG_FILE).is_file() and "hf_model_name" in config["text_cfg"]:
            options["text_cfg"] = {**config["text_cfg"], "hf_model_name": str(folder), "hf_model_pretrained": False}
        if theirs and model.startswith(HUB):
            fetch_weights(model.removeprefix(HUB), asked)
        with hub_files(name, pretrained, asked):
            try:
                with quiet():
                    clip = with_weights(name, pretrained, theirs, options)
                    tokenizer = open_clip.get_tokenizer(name, **tokenizer_options) if with_tokenizer else None
            except Exception as error:  # open_clip and the hub raise anything from OSError to pickle errors
                raise UserError(f"{asked}: {why(error)}") from error
        with_activation(clip.visual, config["vision_cfg"])
        try:
            preprocess = Preprocess.from_dict(open_clip.get_model_preprocess_cfg(clip))
        except ValueError as error:
            raise UserError(f"{asked}: {error}") from None
        return Backbone(
            clip=clip.eval(),
            tokenizer=tokenizer,
            model=given,
            pretrained=tag,
            config=config,
            vocabulary=vocabulary.read_bytes() if vocabulary else None,
            architecture=tower_of_config(config),
            preprocess=preprocess,
            logit_scale=clip.logit_scale.exp().item(),
        )


def why(error: Exception) -> str:
    """What went wrong while a model was loaded, and what to do about it."""
    if "TorchScript" in str(error):  # as OpenAI's own files are
        return (
            "is a TorchScript program, and those are not run; take --pretrained openai, or a folder of the same model "
            "as a hub has it (docs/models.md)"
        )
    lacks = "transformers" in str(error) and isinstance(error, ImportError | RuntimeError)
    hint = "; install what it needs with: pip install 'must-clip[siglip]'" if lacks else ""
    return f"cannot be loaded: {first_line(error)}{hint}"


@contextmanager
def opened(model: str, asked: str) -> Iterator[tuple[str, Path | None]]:
    """(open_clip's name of a model, the folder of transformers that has its weights). A folder of transformers goes by
    the name of one with its configuration and tokenizer, which is there inside the block.

    Raises:
        UserError: a folder of another kind; TransientError: no answer of the hub. The message begins with `asked`.
    """
    with tempfile.TemporaryDirectory(prefix=storage.TEMPORARY) as scratch:
        try:
            if model.startswith(HUB):
                model = as_folder(model.removeprefix(HUB)) or model
            folder = Path(model.removeprefix("local-dir:"))
            if folder.is_file():
                hint = "give its folder, if it is a model's, or say which model's it is: --model NAME --pretrained FILE"
                raise UserError(f"is a file; {hint}")
            theirs = folder if is_folder(model) and is_transformers(folder) else None
            if theirs:
                as_open_clips(theirs, Path(scratch))
        except ValueError as error:
            raise same_kind(error, f"{asked}: {error}") from error
        yield open_clip_name(scratch if theirs else model), theirs


def with_weights(name: str, pretrained: str, theirs: Path | None, options: dict[str, Any]) -> Any:
    """open_clip's model, with the weights of `pretrained`, of the folder itself, or of the folder `theirs`."""
    file = Path(pretrained)
    found: tuple[dict[str, Tensor], str] | None
    if theirs:
        found = read_weights(theirs), ""
    else:
        found = (
            weights_of(file) if file.suffix in CHECKPOINT_ENDINGS and file.is_file() and not is_folder(name) else None
        )
    if found is None:
        return open_clip.create_model(name, pretrained=pretrained or None, **options)
    with quieted(logging.ERROR, ""):  # it warns of random numbers, which do not stay
        clip: Any = open_clip.create_model(name, load_weights=False, pretrained_text=False, **options)
    weights, entry = found
    if entry.partition(".")[0] in AVERAGED:
        logger.info(f"{pretrained}: takes the averaged weights, {entry}")
    if of_transformers(weights):
        weights = from_transformers(clip, weights)
    if wrong := compared(clip.state_dict(), weights):
        try:
            open_clip.load_checkpoint(clip, pretrained)  # which knows older names, and stretches positions
        except Exception as error:
            raise UserError(wrong) from error
    else:
        clip.load_state_dict(weights)
    return clip


def with_activation(visual: Any, vision_cfg: dict[str, Any]) -> Any:
    """A tower of timm with the activation that its configuration names: open_clip 3 leaves it as timm's model has it.

    transformers computes all of SigLIP with the approximation of GELU by tanh, timm some sizes of it.
    """
    if "timm_model_name" in vision_cfg and (chosen := vision_cfg.get("act_kwargs")):
        for module in visual.trunk.modules():
            for name, child in module.named_children():
                if isinstance(child, nn.GELU | timm.layers.GELU | timm.layers.GELUTanh):
                    setattr(module, name, nn.GELU(**chosen))
    return visual


def open_clip_name(model: str) -> str:
    """What open_clip calls the model."""
    if is_folder(model):
        return f"local-dir:{model.removeprefix('local-dir:')}"
    return model if model.startswith(HUB) else model.replace("/", "-")


@contextmanager
def hub_files(model: str, pretrained: str, asked: str, weights: bool = True) -> Iterator[None]:
    """What lies on a hub, configuration or weights, is in its cache inside the block; nothing is asked for the rest.

    Raises:
        UserError, TransientError: it cannot be had; the message begins with `asked`.
    """
    answers = True
    try:
        if model.startswith(HUB):
            names = (OPEN_CLIP_WEIGHTS, OLD_WEIGHTS_FILE) if weights else (MODEL_FOLDER_FILE,)
            answers = fetched(model.removeprefix(HUB), *names)
        elif weights and not is_folder(model) and not Path(pretrained).is_file():
            repository, _, file = open_clip.get_pretrained_cfg(open_clip_name(model), pretrained)["hf_hub"].rpartition(
                "/"
            )
            safe = str(Path(file).with_suffix(".safetensors")) if file else OPEN_CLIP_WEIGHTS
            answers = fetched(repository, *dict.fromkeys([safe, file or OLD_WEIGHTS_FILE]))
    except ValueError as error:
        raise same_kind(error, f"{asked}: {error}") from error
    with (
        patched_constants(HF_HUB_OFFLINE=True) if not answers else nullcontext()
    ):  # each further question would take its time
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
    clip = open_clip.CLIP(
        embed_dim=architecture["embed_dim"],
        vision_cfg={**architecture["vision_cfg"], "timm_model_pretrained": False},
        text_cfg=text,
        quick_gelu=architecture["quick_gelu"],
    )
    return with_activation(clip.visual, architecture["vision_cfg"])


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
    """What `build_visual` needs, of open_clip's model_cfg. Raises ValueError: it has no image tower."""
    if not config.get("vision_cfg"):  # audio, or one network for images and texts
        raise UserError("it has no image tower of its own")
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
    given, pretrained = parse_model_name(model, pretrained)
    asked, model, pretrained = f"--model {given}", ensure_local(given), ensure_local(pretrained)
    with opened(model, asked) as (name, _):
        if not is_folder(name) and not name.startswith(HUB):
            check_name(model)
        with hub_files(name, pretrained, asked, weights=False):
            architecture = architecture_of(given, name, quick_gelu_option(name, pretrained))
    check_tower(given, architecture)
    with torch.device("meta"):
        visual = build_visual(architecture)
    tower, size = tower_of(visual), visual.image_size
    return tower.width, size[0] if isinstance(size, tuple | list) else size, tower.patch


def parse_model_name(model: str, pretrained: str) -> tuple[str, str]:
    """(model, pretrained) of names that people write: NAME/TAG and NAME/FILE.

    Raises:
        ValueError: a tag in the name and another one beside it.
    """
    if is_folder(model) or model.startswith(HUB) or "/" not in model or storage.is_remote(model):
        return model, pretrained
    known = open_clip.list_models()
    cuts = [(model[:at], model[at + 1 :]) for at, sign in enumerate(model) if sign == "/"]
    name, tag = next((cut for cut in cuts if cut[0].replace("/", "-") in known), ("", ""))
    if model.replace("/", "-") in known or not name:  # ViT-B/16, or another thing altogether
        return model, pretrained
    if pretrained and pretrained != tag:
        raise UserError(f"--model {model} already says --pretrained {tag}; it cannot be {pretrained} too")
    return name, tag


def check_name(model: str) -> None:
    known = open_clip.list_models()
    if model.replace("/", "-") not in known:
        near = close_to(model.replace("/", "-"), known, 3)
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        if re.fullmatch(r"[\w.-]+/[\w.-]+", model):
            hint = f"; if it is a model on a hub, call it {HUB}{model}{hint}"
        raise UserError(f"--model {model}: no open_clip model and no folder{hint}")


def check_pretrained(model: str, pretrained: str) -> None:
    tags = open_clip.list_pretrained_tags_by_model(model.replace("/", "-"))
    if not pretrained:
        more = f" (or {', '.join(tags[1:4])}{f' or {len(tags) - 4} more' if len(tags) > 4 else ''})" if tags[1:] else ""
        say = f"needs --pretrained {tags[0]}{more}" if tags else "needs --pretrained"
        raise UserError(f"--model {model}: {say}, or a checkpoint file")
    looks_like_path = os.sep in pretrained or Path(pretrained).suffix in (".pt", ".pth", ".bin", ".safetensors")
    if looks_like_path and not Path(pretrained).is_file():
        raise UserError(f"--pretrained {pretrained}: no such file")
    if not Path(pretrained).is_file() and pretrained not in tags:
        raise UserError(f"--pretrained {pretrained}: no tag of {model}; known: {', '.join(tags)}; or a checkpoint file")


def quick_gelu_option(model: str, pretrained: str) -> dict[str, bool]:
    """OpenAI's weights (and some others) want QuickGELU, whatever the model's name says."""
    tag = open_clip.get_pretrained_cfg(model.replace("/", "-"), pretrained) if pretrained else {}
    return {"force_quick_gelu": True} if tag.get("quick_gelu") else {}
