"""The bundled example: a tiny CLIP that knows computer fonts, and real handwriting to adapt it to."""

from __future__ import annotations

import shutil
from pathlib import Path

import yaml

from must.config import DemoConfig


def asset_folder() -> Path:
    """The bundled model: an open_clip model folder with its own tokenizer."""
    return Path(__file__).parent / "assets"


def demo(config: DemoConfig) -> Path:
    """The stage: writes images/, classes.yaml and model/ to ``config.output``; a second run writes the same again."""
    from must.api.demo.data import CLASSES, TEMPLATES, write_images

    output = Path(config.output)
    counts = write_images(output / "images")
    classes = {"classes": list(CLASSES), "templates": list(TEMPLATES)}
    (output / "classes.yaml").write_text(yaml.safe_dump(classes, sort_keys=False))
    (output / "pipeline.yaml").write_text(yaml.safe_dump(pipeline_parameters(output.resolve()), sort_keys=False))
    shutil.copytree(asset_folder(), output / "model", dirs_exist_ok=True)
    print(
        f"{output}: {counts['unlabeled']} unlabeled images, {counts['test']} labelled ones for reporting only, "
        "classes.yaml, the tiny CLIP in model/, and pipeline.yaml to run it all"
    )
    return output


def pipeline_parameters(folder: Path) -> dict[str, str]:
    """Parameters of the Kubeflow pipeline for the bundled example in `folder`."""
    return {
        "source": str(folder / "images" / "unlabeled"),
        "test_source": str(folder / "images" / "test"),
        "labels": "folder",
        "classes": str(folder / "classes.yaml"),
        "model": str(folder / "model"),
        "pretrained": "",
        "model_name": "digits",
    }
