"""Access to the recorded numbers, and the tiny model that they were recorded on."""

import functools
import json
from pathlib import Path

import numpy as np
import open_clip
import torch

from must.model.masked_vit import MaskedViT

FOLDER = Path(__file__).parent


@functools.cache
def golden(name: str) -> dict[str, np.ndarray]:
    with np.load(FOLDER / f"{name}.npz") as file:
        return dict(file)


@functools.cache
def facts() -> dict:
    return json.loads((FOLDER / "facts.json").read_text())


def our_name(recorded: str) -> str:
    """Recorded parameter name -> ours."""
    return {
        "visual.mask_token_embedding": "mask_token",
        "visual.classifier": "classifier",
        "visual.decoder.0.weight": "decoder.weight",
        "visual.decoder.0.bias": "decoder.bias",
        "visual.ln_patch.weight": "ln_patch.weight",
        "visual.ln_patch.bias": "ln_patch.bias",
    }.get(recorded, recorded)


def tensors(arrays: dict[str, np.ndarray], prefix: str = "visual.", strip: str = "") -> dict[str, torch.Tensor]:
    """Recorded arrays as tensors under our names and shapes (the 1 x 1 convolution is a linear layer of ours)."""
    result = {}
    for name, value in arrays.items():
        if name.startswith(strip + prefix):
            ours = our_name(name.removeprefix(strip))
            tensor = torch.from_numpy(value)
            result[ours] = tensor.flatten(1) if ours == "decoder.weight" else tensor
    return result


def golden_model(dtype=torch.float32) -> MaskedViT:
    visual = open_clip.transformer.VisionTransformer(
        image_size=32, patch_size=8, width=64, layers=3, heads=1, mlp_ratio=4, output_dim=32,
        act_layer=open_clip.transformer.QuickGELU,
    )  # fmt: skip
    weights = tensors(golden("weights"))
    model = MaskedViT(visual, weights["classifier"])
    model.load_state_dict(weights)
    return model.to(dtype)


def golden_batch(step: int, dtype=torch.float32):
    """(weak [8, 3, 32, 32], strong [8, 3, 32, 32], masked patches [8, M]) of a recorded step."""
    inputs = golden("inputs")
    mask = torch.from_numpy(inputs["mask"][step]).flatten(1)
    masked = mask.nonzero()[:, 1].view(len(mask), -1)
    return (*(torch.from_numpy(inputs[name][step]).to(dtype) for name in ("images_weak", "images_strong")), masked)
