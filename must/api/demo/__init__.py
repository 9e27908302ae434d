"""The bundled example: a tiny CLIP trained on computer fonts, and real handwriting to adapt it to."""

import hashlib
import logging
import shutil
from itertools import islice
from pathlib import Path

import numpy as np
import yaml
from PIL import Image

from must.base.parameters import require
from must.config import DemoConfig
from must.config.work import MODEL_FOLDER_FILE

logger = logging.getLogger(__name__)


def asset_folder() -> Path:
    """The bundled model: an open_clip model folder with its own tokenizer."""
    return Path(__file__).parent / "assets"


def demo(config: DemoConfig) -> Path:
    """The stage: writes images/, classes.yaml and model/ to ``config.output``; a second run writes the same again, but
    does not overwrite a changed classes.yaml or pipeline.yaml."""
    output = Path(config.output)
    require(not output.exists() or output.is_dir(), f"--output {output}: is a file; give a new folder")
    mark = output / "model" / MODEL_FOLDER_FILE  # it is written first, and a folder with it is the example's
    content = (asset_folder() / MODEL_FOLDER_FILE).read_bytes()
    is_demo = mark.is_file() and mark.read_bytes() == content
    require(
        is_demo or not output.exists() or not any(output.iterdir()),
        f"--output {output}: holds files of yours, which the example would be mixed with; give a new folder, say "
        f"{output / 'demo'}",
    )
    mark.parent.mkdir(parents=True, exist_ok=True)
    mark.write_bytes(content)
    parts = digit_parts()
    for part in ("unlabeled", "test"):
        for number, (image, label) in enumerate(parts[part]):
            path = output / "images" / part / ("" if part == "unlabeled" else label) / name_image(number)
            path.parent.mkdir(parents=True, exist_ok=True)
            image.save(path)
    shutil.copytree(asset_folder(), output / "model", dirs_exist_ok=True)
    folder = output.resolve()
    pipeline = {  # parameters of the Kubeflow pipeline
        "source": str(folder / "images" / "unlabeled"),
        "test_source": str(folder / "images" / "test"),
        "labels": "folder",
        "classes": str(folder / "classes.yaml"),
        "model": str(folder / "model"),
        "pretrained": "",
        "model_name": "digits",
    }
    classes = {"classes": list(CLASSES), "templates": list(TEMPLATES)}
    for name, values in {"classes.yaml": classes, "pipeline.yaml": pipeline}.items():
        text = yaml.safe_dump(values, sort_keys=False)
        if (output / name).exists() and (output / name).read_text() != text:
            logger.info(f"{output / name}: is kept, because it was changed; delete it to get the example's again")
        else:
            (output / name).write_text(text)
    logger.info(
        f"{output}: {len(parts['unlabeled'])} unlabeled images, {len(parts['test'])} labelled ones for reporting only, "
        "classes.yaml, the tiny CLIP in model/, and pipeline.yaml to run it all"
    )
    return output


CLASSES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
TEMPLATES = (
    "a photo of the digit {}.",
    "a photo of the number {}.",
    "the digit {}.",
    "the number {}.",
    "a picture of the digit {}.",
    "a scan of the number {}.",
    "a blurry photo of the digit {}.",
    "a drawing of the digit {}.",
)
DIGITS = Path(__file__).with_name("digits.csv.gz")
IMAGE_SIZE = 32
SPLIT_SIZES = {"test": 500, "validation": 200, "unlabeled": 1097}


def name_image(number: int) -> str:
    """The file of a part's image, by its place in `digit_parts`."""
    return f"{number:05d}.png"


def digit_parts() -> dict[str, list[tuple[Image.Image, str]]]:
    """The three parts of the data, each a list of (32 x 32 grey image, class name) in a fixed order."""
    table = np.loadtxt(DIGITS, delimiter=",")
    pixels = np.round(table[:, :-1].reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    digits = table[:, -1].astype(int)
    images = [Image.fromarray(one).resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BICUBIC) for one in pixels]
    order = iter(sorted(range(len(pixels)), key=lambda i: hashlib.sha256(pixels[i].tobytes()).digest()))
    return {
        part: [(images[i], CLASSES[digits[i]]) for i in islice(order, count)] for part, count in SPLIT_SIZES.items()
    }
