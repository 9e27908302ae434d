"""Loads CLIP models through open_clip: by name and pretrained tag, from a checkpoint file, or from a model folder.
Writes a classifier's model as such a folder, so that later stages need no hub:

    MODELS/NAME-KEY/open_clip_config.json        architecture and preprocessing
                    open_clip_model.safetensors  weights; in half precision where that loses nothing
                    ...                          files of the tokenizer, if the model has its own

KEY is a hash of the contents, so that classifiers of the same model share a folder."""

import hashlib
import json
import logging
import re
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import open_clip
import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import nn

from must.base import storage
from must.base.console import quieted
from must.base.errors import UserError
from must.base.text import abbreviate
from must.config.work import MODEL_FOLDER_FILE
from must.data.image.preprocess import Preprocess
from must.model import hub
from must.model.masked_vit import make_tower

logger = logging.getLogger(__name__)

TOKENIZER_FILE = "bpe.txt.gz"  # a byte-pair vocabulary as open_clip reads it


@dataclass(frozen=True)
class Backbone:
    """A CLIP model, and what is needed to build it or its image tower again."""

    clip: nn.Module
    tokenizer: Any
    model: str
    pretrained: str
    config: dict[str, Any]  # open_clip's model_cfg
    vocabulary: bytes | None  # of a model folder with its own tokenizer
    architecture: dict[str, Any]  # embed_dim, vision_cfg, quick_gelu
    preprocess: Preprocess
    logit_scale: float  # learned factor on the cosine


def load_backbone(model: str, pretrained: str = "", with_tokenizer: bool = True) -> Backbone:
    """Loads `model` in float32 on the CPU: an open_clip name, ``hf-hub:...``, or a folder of open_clip.

    A folder, and a checkpoint file as `pretrained`, may be in a bucket."""
    requested_model, tag = hub.parse_model_name(model, pretrained)
    model, pretrained = hub.ensure_local(requested_model), hub.ensure_local(tag)
    label = f"--model {requested_model}" + (f" --pretrained {tag}" if tag else "")
    name, config = find_model(requested_model, model, pretrained, label)
    check_tower(requested_model, select_architecture(config))  # before gigabytes are downloaded
    options: dict[str, Any] = dict(find_quick_gelu_option(name, pretrained))
    folder = Path(name.removeprefix("local-dir:")) if hub.is_folder(name) else None
    vocabulary = folder / TOKENIZER_FILE if folder and (folder / TOKENIZER_FILE).is_file() else None
    tokenizer_options = {"bpe_path": str(vocabulary)} if vocabulary else {}
    if folder and (folder / hub.TEXT_CONFIG_FILE).is_file() and "hf_model_name" in config["text_cfg"]:
        options["text_cfg"] = {**config["text_cfg"], "hf_model_name": str(folder), "hf_model_pretrained": False}
    with hub_files_cached(name, pretrained, label):
        try:
            with quiet_open_clip():
                clip = open_clip.create_model(name, pretrained or None, require_pretrained=True, **options)
                tokenizer = open_clip.get_tokenizer(name, **tokenizer_options) if with_tokenizer else None
        except Exception as error:  # open_clip and the hub raise anything from OSError to pickle errors
            if "TorchScript" in str(error):  # torch's own advice is to run it
                raise UserError(
                    f"{label}: is a TorchScript program, and those are not run; take --pretrained openai, or a "
                    "folder of the same model as a hub has it (docs/models.md)"
                ) from error
            lacks = "transformers" in str(error) and isinstance(error, ImportError | RuntimeError)
            hint = "; install what it needs with: pip install 'must-clip[siglip]'" if lacks else ""
            raise UserError(f"{label}: cannot be loaded: {hub.find_first_line(error)}{hint}") from error
    with hub.labelled(label):
        preprocess = Preprocess.from_dict(open_clip.get_model_preprocess_cfg(clip))
    return Backbone(
        clip=clip.eval(),
        tokenizer=tokenizer,
        model=requested_model,
        pretrained=tag,
        config=config,
        vocabulary=vocabulary.read_bytes() if vocabulary else None,
        architecture=select_architecture(config),
        preprocess=preprocess,
        logit_scale=clip.logit_scale.exp().item(),
    )


def find_tower_shape(model: str, pretrained: str) -> tuple[int, int, int]:
    """(width, side of the image in pixels, side of a patch) of a model's image tower. Needs no weights."""
    requested_model, pretrained = hub.parse_model_name(model, pretrained)
    model, pretrained = hub.ensure_local(requested_model), hub.ensure_local(pretrained)
    _, config = find_model(requested_model, model, pretrained, f"--model {requested_model}")
    visual = check_tower(requested_model, select_architecture(config))
    tower, size = make_tower(visual), visual.image_size
    return tower.width, size[0] if isinstance(size, tuple | list) else size, tower.patch


def find_model(requested_model: str, model: str, pretrained: str, label: str) -> tuple[str, dict[str, Any]]:
    """(open_clip's name of a model, open_clip's model_cfg)."""
    with hub.labelled(label):
        if Path(model).is_file():
            raise UserError("is a file; give its folder, or say which model's it is: --model NAME --pretrained FILE")
        if hub.is_folder(model):
            hub.require_open_clip(model.removeprefix("local-dir:"))
    name = open_clip_name(model)
    if not hub.is_folder(name) and not name.startswith(hub.HUB):
        hub.check_name(model)
        check_pretrained(model, pretrained)
    with hub_files_cached(name, pretrained, label, weights=False):
        return name, read_config(requested_model, name, find_quick_gelu_option(name, pretrained))


def open_clip_name(model: str) -> str:
    """open_clip's name of the model."""
    if hub.is_folder(model):
        return f"local-dir:{model.removeprefix('local-dir:')}"
    return model if model.startswith(hub.HUB) else model.replace("/", "-")


@contextmanager
def hub_files_cached(model: str, pretrained: str, label: str, weights: bool = True) -> Iterator[None]:
    """Downloads a model's configuration or weights into the hub's cache, if it is on a hub, before the block runs."""
    online = True
    with hub.labelled(label):
        if model.startswith(hub.HUB):
            names = (hub.OPEN_CLIP_WEIGHTS, hub.OLD_WEIGHTS_FILE) if weights else (MODEL_FOLDER_FILE,)
            online = hub.fetch_first(model.removeprefix(hub.HUB), *names)
        elif weights and not hub.is_folder(model) and not Path(pretrained).is_file():
            hf_hub = open_clip.get_pretrained_cfg(open_clip_name(model), pretrained)["hf_hub"]
            repository, _, file = hf_hub.rpartition("/")
            safe = str(Path(file).with_suffix(".safetensors")) if file else hub.OPEN_CLIP_WEIGHTS
            online = hub.fetch_first(repository, *dict.fromkeys([safe, file or hub.OLD_WEIGHTS_FILE]))
    # If the hub is not online, each request would wait for its timeout.
    with nullcontext() if online else hub.patched_constants(HF_HUB_OFFLINE=True):
        yield


@contextmanager
def quiet_open_clip() -> Iterator[None]:
    """Hides open_clip's messages in the root logger, and its warnings about activations, which are set here."""
    with quieted(logging.WARNING, ""), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="These pretrained weights|'torch.load' received a zip file")
        yield


def build_visual(architecture: dict[str, Any]) -> Any:
    """The image tower of a stored architecture, with random weights and no access to any hub.

    open_clip's constructor needs a text tower: the smallest possible one is built, and dropped."""
    check_fetches_nothing(architecture)
    text = {"context_length": 1, "vocab_size": 1, "width": 8, "heads": 1, "layers": 1}
    clip = open_clip.CLIP(
        embed_dim=architecture["embed_dim"],
        vision_cfg={**architecture["vision_cfg"], "timm_model_pretrained": False},
        text_cfg=text,
        quick_gelu=architecture["quick_gelu"],
    )
    return clip.visual


def check_fetches_nothing(architecture: dict[str, Any]) -> None:
    """For other names than those of its own models, timm would ask a hub or read another folder."""
    name = architecture["vision_cfg"].get("timm_model_name")
    if name is not None and not (isinstance(name, str) and re.fullmatch(r"[\w.-]+", name) and timm.is_model(name)):
        raise UserError(f"its image tower is called {abbreviate(name)}, which is none of timm's own models")


def read_config(model: str, name: str, options: dict[str, bool]) -> dict[str, Any]:
    """open_clip's model_cfg."""
    try:
        config = open_clip.get_model_config(name)
        tokenizer_options = (config.get("text_cfg") or {}).get("tokenizer_kwargs") or {}
        if tokenizer_options.get("trust_remote_code"):
            raise UserError("it asks to run its own code (trust_remote_code), which is not done")
        config["quick_gelu"] = bool(options.get("force_quick_gelu", config.get("quick_gelu", False)))
        select_architecture(config)
        return config
    except Exception as error:  # a damaged file, or any error of the hub
        raise UserError(f"--model {model}: its configuration cannot be read: {hub.find_first_line(error)}") from error


def select_architecture(config: dict[str, Any]) -> dict[str, Any]:
    """The part of open_clip's model_cfg that `build_visual` needs."""
    if not config.get("vision_cfg"):  # audio, or one network for images and texts
        raise UserError("it has no image tower of its own")
    return {name: config[name] for name in ("embed_dim", "vision_cfg", "quick_gelu")}


def check_tower(model: str, architecture: dict[str, Any]) -> Any:
    """The image tower of an architecture, without memory for its weights."""
    try:
        with torch.device("meta"):
            visual = build_visual(architecture)
    except Exception as error:
        raise UserError(f"--model {model}: the image tower cannot be built: {hub.find_first_line(error)}") from error
    with hub.labelled(f"--model {model}"):
        make_tower(visual)
    return visual


def check_pretrained(model: str, pretrained: str) -> None:
    tags = open_clip.list_pretrained_tags_by_model(model.replace("/", "-"))
    known = f"one of {', '.join(tags)}, or a checkpoint file" if tags else "a checkpoint file"
    if not pretrained:
        example = f", such as {model}/{tags[0]}" if tags else ""
        raise UserError(f"--model {model}: names no weights; write {model}/WEIGHTS{example}; the weights are {known}")
    if pretrained not in tags and not Path(pretrained).is_file():
        raise UserError(f"--pretrained {pretrained}: no such file and no tag of {model}; give {known}")


def find_quick_gelu_option(model: str, pretrained: str) -> dict[str, bool]:
    """Options for weights that need QuickGELU: OpenAI's and some others, whatever the model's name is."""
    tag = open_clip.get_pretrained_cfg(model.replace("/", "-"), pretrained) if pretrained else {}
    return {"force_quick_gelu": True} if tag.get("quick_gelu") else {}


def save_model(backbone: Backbone, models: str) -> tuple[str, str]:
    """Writes the model to a folder below `models`, unless it exists; the configuration last, so that a folder
    with it is complete. Returns that folder and the weights' sha256."""
    names = [PurePosixPath(name).name for name in (backbone.model, backbone.pretrained)]
    names[0] = re.sub(r"-[0-9a-f]{12}$", "", names[0])  # the key, if the model is such a folder
    name = re.sub(r"[^\w.-]+", "-", "-".join(filter(None, names))) or "model"
    models = hub.make_absolute(models)
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
        if not is_complete(target, Path(scratch) / hub.OPEN_CLIP_WEIGHTS, contents[hub.OPEN_CLIP_WEIGHTS]):
            for path, file in zip(files, contents, strict=True):
                (storage.move if beside else storage.upload)(path, storage.join(target, file))
    return target, contents[hub.OPEN_CLIP_WEIGHTS]


def write_files(backbone: Backbone, folder: Path) -> None:
    try:
        save_file(compact_weights(backbone.clip), folder / hub.OPEN_CLIP_WEIGHTS)
    except SafetensorError as error:  # safetensors raises it instead of OSError
        raise UserError(f"{folder.parent}: the model cannot be written: {hub.find_first_line(error)}") from error
    config = {"model_cfg": backbone.config, "preprocess_cfg": open_clip.get_model_preprocess_cfg(backbone.clip)}
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


def compact_weights(clip: Any) -> dict[str, Any]:
    """The weights, in half precision where that is exact, as for OpenAI's published weights."""
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
