"""Converts a CLIP or SigLIP folder of transformers to a folder from which open_clip builds the same network.

    config.json                           the architecture
    model.safetensors                     weights; several files with model.safetensors.index.json; or pytorch_model.bin
    tokenizer.json, or vocab.json and merges.txt, ...
    preprocessor_config.json              how images are prepared

The package transformers is needed only for tokenizers other than CLIP's own byte pairs."""

import gzip
import json
import logging
import re
import shutil
from pathlib import Path
from typing import Any

from must.base import storage
from must.base.errors import UserError
from must.base.text import abbreviate
from must.config.work import DESCRIPTION_FILE, MODEL_FOLDER_FILE
from must.data.image.preprocess import CLIP_MEAN, CLIP_STD, FILTERS

logger = logging.getLogger(__name__)

CONFIG_FILE, WEIGHTS_INDEX = "config.json", "model.safetensors.index.json"
TOKENIZER_FILE = "bpe.txt.gz"  # a byte-pair vocabulary as open_clip reads it
WEIGHT_FILES = ("model.safetensors", WEIGHTS_INDEX, "pytorch_model.bin", "pytorch_model.bin.index.json")
PREPROCESSORS = ("preprocessor_config.json", "processor_config.json")  # the second is of transformers 5
TOKENIZERS = ("*token*.json", "*.model", "vocab.*", "merges.txt")
BEGIN, END_OF_TEXT = "<|startoftext|>", "<|endoftext|>"  # open_clip calls them <start_of_text> and <end_of_text>
MODEL_CLASSES = {"clip": "CLIPModel", "siglip": "SiglipModel"}
CONFIG_DEFAULTS: dict[str, dict[str, dict[str, Any]]] = {  # values that config.json may omit
    "clip": {
        "vision": {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12, "patch_size": 32},
        "text": {"hidden_size": 512, "intermediate_size": 2048, "num_attention_heads": 8, "vocab_size": 49408},
        "both": {"hidden_act": "quick_gelu", "layer_norm_eps": 1e-5, "max_position_embeddings": 77},
    },
    "siglip": {
        "vision": {"patch_size": 16},
        "text": {"vocab_size": 32000},
        "both": {
            "hidden_size": 768,
            "intermediate_size": 3072,
            "num_attention_heads": 12,
            "hidden_act": "gelu_pytorch_tanh",
            "layer_norm_eps": 1e-6,
            "max_position_embeddings": 64,
        },
    },
}
GELUS = {"gelu": "none", "gelu_pytorch_tanh": "tanh", "gelu_new": "tanh"}  # how the Gaussian integral is approximated
SIGLIPS = {  # (width, blocks, heads, width of the MLP): timm's name of SigLIP's image tower
    (768, 12, 12, 3072): "base",
    (1024, 24, 16, 4096): "large",
    (1152, 27, 16, 4304): "so400m",
    (1536, 40, 16, 6144): "giantopt",
}


def is_transformers(folder: Path) -> bool:
    """Of two kinds: False for a folder of open_clip."""
    if (folder / MODEL_FOLDER_FILE).is_file():
        return False
    if (folder / DESCRIPTION_FILE).is_file():
        raise UserError("is a bundle, an image tower without a text tower; `must export --to open_clip` makes a model")
    if (folder / "adapter_config.json").is_file():
        raise UserError("is an adapter (LoRA) without its model; save the model that merge_and_unload() returns")
    if not (folder / CONFIG_FILE).is_file():
        raise UserError(f"no {MODEL_FOLDER_FILE} in this folder, nor {CONFIG_FILE} as transformers writes it")
    return True


def write_open_clip_folder(folder: Path, output: Path) -> None:
    """Writes the configuration and tokenizer files that open_clip needs, but not the weights."""
    config = read(folder / CONFIG_FILE)
    model = find_model_config(config)
    preprocess = read_preprocess(folder, config["model_type"], model["vision_cfg"]["image_size"])
    if not write_vocabulary(folder, output, model["text_cfg"]):
        for path in (path for pattern in TOKENIZERS for path in folder.glob(pattern)):
            shutil.copyfile(path, output / path.name)
        model["text_cfg"] |= {"hf_tokenizer_name": "transformers", "tokenizer_kwargs": {"clean": "canonicalize"}}
        if config["model_type"] == "clip":
            model["text_cfg"]["tokenizer_kwargs"] = {"clean": "lower"}
    open_clip_config = {"model_cfg": model, "preprocess_cfg": preprocess}
    (output / MODEL_FOLDER_FILE).write_text(json.dumps(open_clip_config), encoding="utf-8")


def read(path: Path) -> dict[str, Any]:
    return storage.read_object(str(path), dict, UserError(f"its {path.name} is damaged"))


def find_model_config(config: dict[str, Any]) -> dict[str, Any]:
    """open_clip's model_cfg that computes the same."""
    kind = config.get("model_type")
    if kind not in MODEL_CLASSES or config.get("architectures", [MODEL_CLASSES[kind]]) != [MODEL_CLASSES[kind]]:
        raise UserError(describe_unsupported(config))
    try:
        image, text = (read_part(config, part) for part in ("vision", "text"))
        return convert_clip(config, image, text) if kind == "clip" else convert_siglip(image, text)
    except (KeyError, TypeError, AttributeError, ZeroDivisionError) as error:
        raise UserError(f"its {CONFIG_FILE} is damaged") from error


def describe_unsupported(config: dict[str, Any]) -> str:
    """The message for a model of another kind."""
    kind = config.get("architectures") or config.get("architecture") or config.get("model_type") or "no model"
    name = abbreviate(kind[0] if isinstance(kind, list) and kind else kind)
    hint = ""
    if config.get("model_type") == "siglip2":
        hint = " (SigLIP 2 NaFlex, whose images differ in size); take SigLIP 2 of a fixed resolution"
    elif re.search(r"(Vision|Text)Model|ForImageClass", name):
        hint = " (a part of a CLIP); save the whole CLIPModel or SiglipModel"
    elif "pretrained_cfg" in config:
        hint = " (an image tower of timm without a text tower)"
    return f"its {CONFIG_FILE} names {name}{hint}; CLIPModel and SiglipModel of transformers can be read"


def read_part(config: dict[str, Any], part: str) -> dict[str, Any]:
    """The configuration of a tower, with transformers' defaults added."""
    defaults = CONFIG_DEFAULTS[config["model_type"]]
    values = {"num_hidden_layers": 12, "image_size": 224, "num_channels": 3, **defaults["both"], **defaults[part]}
    for name in (f"{part}_config", f"{part}_config_dict"):  # the second is of older versions, and overrides the first
        values |= {key: value for key, value in (config.get(name) or {}).items() if value is not None}
    for name in ("image_size", "patch_size"):
        if isinstance(side := values.get(name), list) and len(set(side)) == 1:
            values[name] = side[0]
    supported = [*GELUS, "quick_gelu"] if config["model_type"] == "clip" else [*GELUS]
    if values["hidden_act"] not in supported:
        raise UserError(f"its activation {abbreviate(values['hidden_act'])} is none of {', '.join(supported)}")
    return values


def convert_clip(config: dict[str, Any], image: dict[str, Any], text: dict[str, Any]) -> dict[str, Any]:
    activations = [part["hidden_act"] for part in (image, text)]
    if len({act == "quick_gelu" for act in activations}) > 1:
        raise UserError(f"its towers have the activations {' and '.join(activations)}, and open_clip has one for both")
    highest = text["vocab_size"] - 1
    eos = text.get("eos_token_id", highest)
    pool = {} if eos in (2, highest) else {"pool_type": "eos", "eos_id": eos}  # older versions: 2 for the highest
    return {
        "embed_dim": config.get("projection_dim", 512),
        "quick_gelu": activations[0] == "quick_gelu",
        "vision_cfg": {
            "image_size": image["image_size"],
            "patch_size": image["patch_size"],
            "head_width": image["hidden_size"] // image["num_attention_heads"],
            **read_shape(image),
        },
        "text_cfg": {**find_text_shape(text), **pool},
    }


def convert_siglip(image: dict[str, Any], text: dict[str, Any]) -> dict[str, Any]:
    import timm

    patch = image["patch_size"]
    size = image["image_size"] // patch * patch  # pixels that no patch covers are not used
    if size != image["image_size"]:
        logger.warning(
            f"images are resized to {size} pixels, not {image['image_size']}, which patches of {patch} do not divide"
        )
    shape = tuple(image[name] for name in ("hidden_size", "num_hidden_layers", "num_attention_heads"))
    name = f"vit_{SIGLIPS.get((*shape, image['intermediate_size']))}_patch{patch}_siglip_{size}"
    if not timm.is_model(name) or image["layer_norm_eps"] != 1e-6 or not image.get("vision_use_head", True):
        raise UserError(
            f"its image tower is none of SigLIP's published ones: {image['num_hidden_layers']} blocks of width "
            f"{image['hidden_size']}, patches of {patch} and images of {size} pixels"
        )
    if text.get("projection_size", text["hidden_size"]) != image["hidden_size"]:
        raise UserError("its text tower's feature is of another size than that of its image tower")
    return {
        "embed_dim": image["hidden_size"],
        "init_logit_bias": -10,
        "custom_text": True,
        "quick_gelu": False,
        "vision_cfg": {
            "image_size": size,
            "timm_model_name": name,
            "timm_model_pretrained": False,
            "timm_pool": "map",
            "timm_proj": "none",
            "act_kwargs": {"approximate": GELUS[image["hidden_act"]]},
        },
        "text_cfg": {**find_text_shape(text), "no_causal_mask": True, "proj_bias": True, "pool_type": "last"},
    }


def read_shape(part: dict[str, Any]) -> dict[str, Any]:
    width, inner = part["hidden_size"], part["intermediate_size"]
    ratio = inner / width if int(width * (inner / width)) == inner else (inner + 0.5) / width  # open_clip rounds down
    shape = {"width": width, "layers": part["num_hidden_layers"], "mlp_ratio": ratio}
    eps = {} if part["layer_norm_eps"] == 1e-5 else {"norm_kwargs": {"eps": part["layer_norm_eps"]}}
    approximate = GELUS.get(part["hidden_act"], "none")
    return {**shape, **eps, **({} if approximate == "none" else {"act_kwargs": {"approximate": approximate}})}


def find_text_shape(text: dict[str, Any]) -> dict[str, Any]:
    sizes = {"context_length": text["max_position_embeddings"], "vocab_size": text["vocab_size"]}
    return {**sizes, "heads": text["num_attention_heads"], **read_shape(text)}


def read_preprocess(folder: Path, kind: str, size: int) -> dict[str, Any]:
    """open_clip's preprocess_cfg that gives the same pixels."""
    settings: dict[str, Any] = next((read(folder / name) for name in PREPROCESSORS if (folder / name).is_file()), {})
    settings = settings.get("image_processor") or settings
    if not settings:
        logger.warning(f"{folder}: no {PREPROCESSORS[0]}; images are prepared as {MODEL_CLASSES[kind]} does by default")
    filters = {int(number): name for name, number in FILTERS.items()}
    resample = settings.get("resample", 3)
    if resample not in filters or abs(settings.get("rescale_factor", 1 / 255) * 255 - 1) > 1e-6:
        raise UserError(f"its image preparation (resample {abbreviate(resample)}) is neither bicubic nor bilinear")
    crops = settings.get("do_center_crop", kind == "clip")
    side = settings.get("size")
    side = side.get("shortest_edge") or side.get("height") if isinstance(side, dict) else side
    if crops and side not in (None, size):
        logger.warning(f"images are resized to {size} pixels and not, before they are cropped, to {side}")
    mean, std = ([0.5] * 3, [0.5] * 3) if kind == "siglip" else (list(CLIP_MEAN), list(CLIP_STD))
    if not settings.get("do_normalize", True):
        settings |= {"image_mean": [0.0] * 3, "image_std": [1.0] * 3}
    return {
        "size": size,
        "mean": settings.get("image_mean") or mean,
        "std": settings.get("image_std") or std,
        "interpolation": filters[resample],
        "resize_mode": "shortest" if crops else "squash",
    }


def write_vocabulary(folder: Path, output: Path, text: dict[str, Any]) -> bool:
    """Writes the byte pairs of a CLIP tokenizer in open_clip's format, unless they are open_clip's own. False: another
    kind of tokenizer."""
    import open_clip

    if text.get("no_causal_mask"):  # SigLIP's
        return False
    vocabulary = read_byte_pairs(folder)
    if vocabulary is None:
        return False
    numbers, merges = vocabulary
    packed = gzip.compress("\n".join(["#version: 0.2", *merges]).encode(), mtime=0)
    file, published = output / TOKENIZER_FILE, open_clip.SimpleTokenizer()
    file.write_bytes(packed)
    for tokenizer in (published, open_clip.SimpleTokenizer(str(file))):
        special = {tokenizer.sot_token_id: BEGIN, tokenizer.eot_token_id: END_OF_TEXT}
        if numbers == {special.get(number, word): number for word, number in tokenizer.encoder.items()}:
            if tokenizer is published:
                file.unlink()
            return True
    file.unlink()
    return False


def read_byte_pairs(folder: Path) -> tuple[dict[str, int], list[str]] | None:
    """(number of each token, merges) of a byte-pair tokenizer; None: another kind."""
    if (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
        lines = (folder / "merges.txt").read_text(encoding="utf-8").splitlines()
        added = read(folder / "added_tokens.json") if (folder / "added_tokens.json").is_file() else {}
        return read(folder / "vocab.json") | added, [line for line in lines if line and not line.startswith("#version")]
    if (folder / "tokenizer.json").is_file():
        tokenizer = read(folder / "tokenizer.json")
        model = tokenizer.get("model") or {}
        if model.get("type") != "BPE" or model.get("end_of_word_suffix") != "</w>":
            return None
        merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
        return model["vocab"] | {token["content"]: token["id"] for token in tokenizer.get("added_tokens") or ()}, merges
    raise UserError("has no tokenizer: no tokenizer.json, nor vocab.json with merges.txt; save it to this folder")
