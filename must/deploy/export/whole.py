"""A whole CLIP model again: the adapted image tower with the text tower that it came with."""

import math
from typing import Any

import torch

from must.base.parameters import require
from must.method.model.backbone import Backbone, load_backbone
from must.method.model.bundle import Bundle
from must.method.model.classifier import read_header
from must.method.model.folder import verified


def whole_model(classifier: str, model: str, bundle: Bundle) -> Backbone:
    """The classifier file's model with the image tower of the bundle at `model` in it, whose logit factor is its scale.

    Raises:
        ValueError: the classifier's model is not there, or of another architecture than the bundle's.
    """
    header = read_header(classifier)
    folder = header["model_folder"]
    named = (verified(folder, header["model_sha256"]), "") if folder else (header["model"], header["pretrained"])
    backbone = load_backbone(*named)
    clip: Any = backbone.clip
    require(
        same(backbone.architecture, bundle.description.architecture),
        f"--classifier {classifier}: was made with {header['model']}, whose image tower is of another shape "
        f"than that of --model {model} ({bundle.description.backbone})",
    )
    clip.visual.load_state_dict(bundle.model.visual.state_dict())
    with torch.no_grad():
        clip.logit_scale.fill_(math.log(bundle.description.logit_factor))
    return backbone


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two architectures are one; options that nothing is said of are as good as None."""
    parts = [{name: value for name, value in each["vision_cfg"].items() if value is not None} for each in (one, other)]
    return parts[0] == parts[1] and all(one[name] == other[name] for name in ("embed_dim", "quick_gelu"))
