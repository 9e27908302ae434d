"""Reads the model's weights from a checkpoint of any training program, without prefixes and optimizer state."""

import argparse
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

AVERAGED = ("state_dict_ema", "model_ema", "ema_state_dict", "ema")  # averaged weights are preferred
WEIGHT_KEYS = (*AVERAGED, "state_dict", "model_state_dict", "model", "module")
ANCHOR = "logit_scale"  # every CLIP has it: the text before it is the prefix of all names


def weights_of(file: Path) -> tuple[dict[str, Tensor], str] | None:
    """(the model's weights, the name of the entry they were under); None for a file that is left to open_clip.

    The weights have open_clip's names or those of transformers.
    """
    try:
        if file.suffix == ".safetensors":
            from safetensors.torch import load_file

            content: Any = load_file(file)
        else:
            with torch.serialization.safe_globals([argparse.Namespace]):  # programs store their arguments as one
                content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception:  # numpy arrays, TorchScript, or damaged: open_clip reports it
        return None
    keys = []
    while isinstance(content, dict) and (key := next((k for k in WEIGHT_KEYS if is_filled(content.get(k))), None)):
        keys.append(key)
        content = content[key]
    if not isinstance(content, dict):
        return None
    anchors = [name for name in content if isinstance(name, str) and name.endswith(ANCHOR)]
    prefix = min(anchors, key=len).removesuffix(ANCHOR) if anchors else ""
    weights = {
        name.removeprefix(prefix): value
        for name, value in content.items()
        if isinstance(name, str) and name.startswith(prefix) and isinstance(value, Tensor)
    }
    return weights, ".".join(keys)


def is_filled(value: Any) -> bool:
    return isinstance(value, dict) and bool(value)


def has_transformers_names(weights: dict[str, Tensor]) -> bool:
    return any(name.startswith(("vision_model.", "text_model.")) for name in weights)
