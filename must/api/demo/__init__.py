"""The bundled example: a tiny CLIP that knows computer fonts, and real handwriting to adapt it to."""

import logging
import shutil
from pathlib import Path

import yaml

from must.base.files import MODEL_FOLDER_FILE
from must.base.parameters import require
from must.config import DemoConfig

logger = logging.getLogger(__name__)


def asset_folder() -> Path:
    """The bundled model: an open_clip model folder with its own tokenizer."""
    return Path(__file__).parent / "assets"


def demo(config: DemoConfig) -> Path:
    """The stage: writes images/, classes.yaml and model/ to ``config.output``; a second run writes the same again.

    Raises:
        ValueError: the folder holds something else. A classes.yaml or pipeline.yaml that was changed is left alone.
    """
    from must.api.demo.data import CLASSES, TEMPLATES, write_images

    output = Path(config.output)
    check_output(output)
    (output / "model").mkdir(parents=True, exist_ok=True)
    # First: it says whose folder this is.
    shutil.copyfile(asset_folder() / MODEL_FOLDER_FILE, output / "model" / MODEL_FOLDER_FILE)
    counts = write_images(output / "images")
    shutil.copytree(asset_folder(), output / "model", dirs_exist_ok=True)
    classes = {"classes": list(CLASSES), "templates": list(TEMPLATES)}
    contents = {"classes.yaml": classes, "pipeline.yaml": pipeline_parameters(output.resolve())}
    for name, content in contents.items():
        text = yaml.safe_dump(content, sort_keys=False)
        if (output / name).exists() and (output / name).read_text() != text:
            logger.info(f"{output / name}: is left as it is, for it was changed; delete it to have the example's again")
        else:
            (output / name).write_text(text)
    logger.info(
        f"{output}: {counts['unlabeled']} unlabeled images, {counts['test']} labelled ones for reporting only, "
        "classes.yaml, the tiny CLIP in model/, and pipeline.yaml to run it all"
    )
    return output


def check_output(output: Path) -> None:
    """Raises ValueError: it is no folder, or one with files of somebody else's."""
    require(not output.exists() or output.is_dir(), f"--output {output}: is a file; give a new folder")
    sign = output / "model" / MODEL_FOLDER_FILE
    ours = sign.is_file() and sign.read_bytes() == (asset_folder() / MODEL_FOLDER_FILE).read_bytes()
    require(
        ours or not output.exists() or not any(output.iterdir()),
        f"--output {output}: holds files of yours, which the example would be mixed with; give a new folder, say "
        f"{output / 'demo'}",
    )


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
        "preset": "digits",
    }
