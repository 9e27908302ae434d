"""`must export --to open_clip`: a whole model folder, as open_clip itself writes and loads one."""

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
    """open_clip's own, [N, D]."""
    import open_clip

    from must.method.model.backbone import quiet_open_clip

    try:
        with quiet_open_clip():
            model = open_clip.create_model(f"local-dir:{folder}").eval()
    except Exception as error:  # text towers of transformers are asked for at a hub, which raises anything
        raise UserError(f"--to open_clip: open_clip does not load what was written: {first_line(error)}") from error
    return features_of(model.encode_image, images)


def use(folder: Path) -> str:
    return USE


def whole_model(classifier: str, model: str, bundle: Bundle) -> Backbone:
    """The classifier file's model with the image tower of the bundle at `model` in it, whose logit factor is its scale.
    Raises ValueError: the classifier's model is not there, or of another architecture than the bundle's."""
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
