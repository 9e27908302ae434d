"""`must export --to open_clip`: a complete model folder in open_clip's format."""

import math
from pathlib import Path
from typing import Any

import torch

from must.base.errors import UserError
from must.base.parameters import require
from must.config import ExportConfig
from must.deploy.export.deployed import features_of
from must.deploy.export.model_card import usage
from must.method.model.backbone import Backbone, load_backbone
from must.method.model.bundle import Bundle
from must.method.model.classifier import read_header
from must.method.model.folder import verified, write_files
from must.method.model.hub import first_line

USE = usage(
    "open_clip, safetensors.torch, safetensors",
    'model, _, preprocess = open_clip.create_model_and_transforms("local-dir:FOLDER")  # on a hub: "hf-hub:TEAM/NAME"',
    "feature = model.eval().encode_image(preprocess(picture).unsqueeze(0), normalize=True)",
)


def write(config: ExportConfig, bundle: Bundle, folder: Path) -> None:
    write_files(whole_model(config.classifier, config.model, bundle), folder)


def features(folder: Path, images: torch.Tensor) -> torch.Tensor:
    """The features [N, D] that open_clip computes with the written folder."""
    import open_clip

    from must.method.model.backbone import quiet_open_clip

    try:
        with quiet_open_clip():
            model = open_clip.create_model(f"local-dir:{folder}").eval()
    except Exception as error:  # any kind: for text towers of transformers, open_clip sends requests to a hub
        raise UserError(f"--to open_clip: open_clip does not load what was written: {first_line(error)}") from error
    return features_of(model.encode_image, images)


def use(folder: Path) -> str:
    return USE


def whole_model(classifier: str, model: str, bundle: Bundle) -> Backbone:
    """The classifier file's model with the image tower and the logit factor of the bundle at `model`.
    Raises ValueError: the classifier's model does not exist, or has another architecture than the bundle."""
    header = read_header(classifier)
    folder = header["model_folder"]
    source = (verified(folder, header["model_sha256"]), "") if folder else (header["model"], header["pretrained"])
    backbone = load_backbone(*source)
    clip: Any = backbone.clip
    require(
        is_same(backbone.architecture, bundle.description.architecture),
        f"--classifier {classifier}: was made with {header['model']}, whose image tower is of another shape "
        f"than that of --model {model} ({bundle.description.backbone})",
    )
    clip.visual.load_state_dict(bundle.model.visual.state_dict())
    with torch.no_grad():
        clip.logit_scale.fill_(math.log(bundle.description.logit_factor))
    return backbone


def is_same(a: dict[str, Any], b: dict[str, Any]) -> bool:
    """Whether two architectures are equal; a missing option equals None."""
    towers = [{name: value for name, value in each["vision_cfg"].items() if value is not None} for each in (a, b)]
    return towers[0] == towers[1] and all(a[name] == b[name] for name in ("embed_dim", "quick_gelu"))
