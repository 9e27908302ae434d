"""`must export --to open_clip`: a whole model folder, as open_clip itself writes and loads one."""

from pathlib import Path

import torch

from must.base.errors import UserError
from must.config import ExportConfig
from must.deploy.export.check import features_of
from must.deploy.export.hub_card import usage
from must.deploy.export.whole import whole_model
from must.method.model.bundle import Bundle
from must.method.model.folder import write_files
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

    from must.method.model.backbone import quiet

    try:
        with quiet():
            model = open_clip.create_model(f"local-dir:{folder}").eval()
    except Exception as error:  # text towers of transformers are asked for at a hub, which raises anything
        raise UserError(f"--to open_clip: open_clip does not load what was written: {first_line(error)}") from error
    return features_of(model.encode_image, images)


def use(bundle: Bundle, folder: Path) -> str:
    return USE
