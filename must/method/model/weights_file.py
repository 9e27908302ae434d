"""A checkpoint of any training program: the weights of the model in it, without prefixes, optimizer and the like."""

import argparse
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

AVERAGED = ("state_dict_ema", "model_ema", "ema_state_dict", "ema")  # taken before the others: what was to be used
HOLDERS = (*AVERAGED, "state_dict", "model_state_dict", "model", "module")
ANCHOR = "logit_scale"  # every CLIP has it: what stands before is a prefix


def weights_of(file: Path) -> tuple[dict[str, Tensor], str] | None:
    """(the model's weights, the name of the entry they were under); None for a file that open_clip reads as it is.

    The weights have open_clip's names or those of transformers.
    """
    try:
        if file.suffix == ".safetensors":
            from safetensors.torch import load_file

            found: Any = load_file(file)
        else:
            with torch.serialization.safe_globals([argparse.Namespace]):  # programs keep their arguments in it
                found = torch.load(file, map_location="cpu", weights_only=True)
    except Exception:  # of numpy, a program, damaged: open_clip says it
        return None
    place = []
    while isinstance(found, dict) and (inner := next((name for name in HOLDERS if holds(found.get(name))), None)):
        place.append(inner)
        found = found[inner]
    if not isinstance(found, dict):
        return None
    anchors = [name for name in found if isinstance(name, str) and name.endswith(ANCHOR)]
    prefix = min(anchors, key=len).removesuffix(ANCHOR) if anchors else ""
    weights = {
        name.removeprefix(prefix): value
        for name, value in found.items()
        if isinstance(name, str) and name.startswith(prefix) and isinstance(value, Tensor)
    }
    return weights, ".".join(place)


def holds(value: Any) -> bool:
    return isinstance(value, dict) and bool(value)


def of_transformers(weights: dict[str, Tensor]) -> bool:
    return any(name.startswith(("vision_model.", "text_model.")) for name in weights)


def compared(expected: dict[str, Tensor], found: dict[str, Tensor]) -> str:
    """What is wrong with weights for a model, in a line; '' if nothing is."""
    missing = [name for name in expected if name not in found]
    others = [name for name in found if name not in expected]
    shapes = [name for name in expected if name in found and expected[name].shape != found[name].shape]
    if shapes:
        name, of = shapes[0], f"{len(shapes)} of {len(expected)}"
        one, other = (list(weights[name].shape) for weights in (found, expected))
        return f"it is of another model: {of} tensors have other shapes ({name} has {one}, not {other})"
    counts = [f"lacks {len(missing)} of {len(expected)} tensors ({missing[0]})"] if missing else []
    counts += [f"has {len(others)} others ({others[0]})"] if others else []
    return f"it is of another model: {' and '.join(counts)}" if counts else ""
