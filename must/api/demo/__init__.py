"""The bundled example: a tiny CLIP trained on computer fonts, and real handwriting to adapt it to.

`must demo` writes it. `must quickstart` adapts it: without labels, in one pass, and with the page on which a person
answers about the pictures. It is `must demo`, `must adapt` and `must review`, and `must adapt` again with the answers.
The page also says what is true, as the classes of these pictures are known."""

import hashlib
import logging
import shutil
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

from must.api.run import configure, run
from must.base import storage
from must.base.console import quieted
from must.base.parameters import require
from must.base.text import parse_csv
from must.config import DemoConfig, QuickstartConfig
from must.config.work import METRICS_FILE, MODEL_FOLDER_FILE, PREDICTIONS_FILE

logger = logging.getLogger(__name__)


def find_assets() -> Path:
    """The bundled model: an open_clip model folder with its own tokenizer."""
    return Path(__file__).parent / "assets"


def demo(config: DemoConfig) -> Path:
    """The stage: writes images/, classes.yaml and model/ to ``config.output``; a second run writes the same again, but
    does not overwrite a changed classes.yaml or pipeline.yaml."""
    output = Path(config.output)
    require(not output.exists() or output.is_dir(), f"--output {output}: is a file; give a new folder")
    mark = output / "model" / MODEL_FOLDER_FILE  # it is written first, and a folder with it is the example's
    content = (find_assets() / MODEL_FOLDER_FILE).read_bytes()
    is_demo = mark.is_file() and mark.read_bytes() == content
    require(
        is_demo or not output.exists() or not any(output.iterdir()),
        f"--output {output}: holds files of yours, which the example would be mixed with; give a new folder, say "
        f"{output / 'demo'}",
    )
    mark.parent.mkdir(parents=True, exist_ok=True)
    mark.write_bytes(content)
    parts = load_digits()
    for part in ("unlabeled", "test"):
        for number, (image, label) in enumerate(parts[part]):
            path = output / "images" / part / ("" if part == "unlabeled" else label) / name_image(number)
            path.parent.mkdir(parents=True, exist_ok=True)
            image.save(path)
    shutil.copytree(find_assets(), output / "model", dirs_exist_ok=True)
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
    """The file of a part's image, by its place in `load_digits`."""
    return f"{number:05d}.png"


def load_digits() -> dict[str, list[tuple[Image.Image, str]]]:
    """The three parts of the data, each a list of (32 x 32 grey image, class name) in a fixed order."""
    table = np.loadtxt(DIGITS, delimiter=",")
    pixels = np.round(table[:, :-1].reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    digits = table[:, -1].astype(int)
    images = [Image.fromarray(one).resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BICUBIC) for one in pixels]
    order = iter(sorted(range(len(pixels)), key=lambda i: hashlib.sha256(pixels[i].tobytes()).digest()))
    return {
        part: [(images[i], CLASSES[digits[i]]) for i in islice(order, count)] for part, count in SPLIT_SIZES.items()
    }


def quickstart(config: QuickstartConfig) -> None:
    """The stage: serves the page until a signal, then gives the answers to the model."""
    folder, work = Path(config.output), Path(config.output, "work")
    truth = {name_image(number): label for number, (_, label) in enumerate(load_digits()["unlabeled"])}
    with quieted(logging.WARNING, "must"):
        demo(DemoConfig(output=config.output))
    logger.info(
        f"{len(truth):,} handwritten digits without labels, a CLIP that knows computer fonts only. One pass ..."
    )
    words = {
        "images": folder / "images/unlabeled", "classes": folder / "classes.yaml", "model": folder / "model",
        "output": work, "train": "no",
    }  # fmt: skip
    adapt(words)
    answers, table = work / "review" / "answers.jsonl", work / "labels" / PREDICTIONS_FILE
    classes = yaml.safe_load((folder / "classes.yaml").read_text())["classes"]
    known = classes == list(CLASSES) and {row["image"] for row in parse_csv(table.read_bytes())} <= truth.keys()
    if known:
        before, now = measure_labels(table, truth)
        logger.info(
            f"right classes: {before:.1%} by the CLIP alone, {now:.1%} after the pass. The page says it, too: the "
            "classes of these pictures are known. Name some:\n"
        )
    run("review", configure("review", {"model": str(work)}), truth=truth if known else None)
    if not answers.exists():
        return
    logger.info("\nThe answers are given to the labels and to the model ...")
    adapt(words | ({"test_images": folder / "images/test"} if known else {}))
    if not known:
        logger.info(f"labels: {table}\nreport: {work / 'report' / 'report.html'}")
        return
    metrics = storage.read_json(str(work / "report" / METRICS_FILE), "output")
    before, model = (metrics[name]["top1"] for name in ("baseline", "adapted"))
    logger.info(
        f"right classes: {measure_labels(work / 'labels' / PREDICTIONS_FILE, truth)[1]:.1%} of the labels; "
        f"{model:.1%} by the model for {metrics['labelled']} other pictures, {before:.1%} by the CLIP alone\n"
        f"report: {work / 'report' / 'report.html'}"
    )


def adapt(words: dict[str, Any]) -> None:
    with quieted(logging.WARNING, "must"):
        run("adapt", **{name: str(value) for name, value in words.items()})


def measure_labels(table: Path, truth: dict[str, str]) -> tuple[float, float]:
    """(share of right classes of zero-shot, of the labels), from 0 to 1, by predictions.csv of `must refine`."""
    rows = list(parse_csv(table.read_bytes()))
    shares = (sum(row[column] == truth[row["image"]] for row in rows) / len(rows) for column in ("zero_shot", "class"))
    before, now = shares
    return before, now
