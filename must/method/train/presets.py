"""Settings of a preset: published ones for a data set (presets.yaml), or computed from data and model (`auto`).

`auto` is for users who cannot tune. The published settings (arXiv 2206.02967) are of ViT-B/16 and ViT-L/14 with 3,760
to 1.28 million images; tiny towers were measured (docs/selection.md). Settings between them are interpolated linearly
in the logarithms.
"""

import math
import re
from dataclasses import replace
from importlib import resources
from typing import Any

import yaml

from must.base.parameters import require
from must.base.text import did_you_mean
from must.config import TrainConfig
from must.data.format.index import Index
from must.method.model.classifier import TextClassifier

AUTO = "auto"
REPORTED = ("dataset", "model", "zero_shot", "must")  # not settings: what the row is for, and its published accuracy

IMAGES_AT_WIDTH_128 = 48_000  # to train on in all epochs at width 128, for small data sets
EPOCHS = (10, 24)
BATCHES = (16, 256)
STEPS_AN_EPOCH = 16
TINY_WIDTH, TINY_LR, TINY_CLASSES = 128, 1e-3, 10  # a measured tower: width, learning rate at batch 64, classes
LARGE_WIDTH, LARGE_LR = 768, 2e-5  # ViT-B, at the same batch, with 43 to 1,000 classes
MEMORY = 0.12, 0.25  # of the EMA teacher, as shares of all steps: at the start and after the ramp
RAMP = 0.15  # of the steps
CONFIDENT = 0.4  # share of the images that are confident at the start


def resolve(config: TrainConfig, index: Index, classifier: TextClassifier) -> TrainConfig:
    """All settings of a run: passed values override the preset's, which override the defaults. Call it once, at the
    start.

    Raises:
        ValueError: no such preset, or none for this model.
    """
    if not config.preset:
        return config
    if config.preset == AUTO:
        values = auto(config, index, classifier)
    else:
        values = published(config.preset, config.model or classifier.model)
    preset_values = {name: value for name, value in values.items() if not config.is_passed(name)}
    return replace(config, **preset_values, passed=config.passed | values.keys())


def auto(config: TrainConfig, index: Index, classifier: TextClassifier) -> dict[str, Any]:
    """Settings for the split's number of images, the classifier's classes and the trained model."""
    from must.method.model.backbone import tower_shape  # imports torch

    images = sum(shard.samples for shard in index.shards_of(config.split))
    model, pretrained = config.model, config.pretrained
    if not model:
        stored = "" if pretrained else classifier.model_folder
        model, pretrained = stored or classifier.model, pretrained or ("" if stored else classifier.pretrained)
    values = settings(images, len(classifier.classes), *tower_shape(model, pretrained))
    return values | ({"class_prior": "given"} if classifier.shares else {})


def published(name: str, model: str) -> dict[str, Any]:
    """The settings of a data set for a model of a published size (ViT-B/16 or ViT-L/14).

    Raises:
        ValueError: no such preset, or none for a model of this size.
    """
    rows = rows_of(name)
    size = "*" if "*" in rows else published_size(model)
    require(
        size in rows,
        f"--preset {name}: published for {' and '.join(rows)} only, not for {model}; "
        "give the settings one by one or in a --config file",
    )
    return {key: value for key, value in rows[size].items() if key not in REPORTED}


def rows_of(name: str) -> dict[str, dict[str, Any]]:
    """A preset's rows by the model's size, '*' for any. Raises ValueError: there is no such preset."""
    rows = yaml.safe_load(resources.files("must.config").joinpath("presets.yaml").read_text(encoding="utf-8"))["tasks"]
    known = [AUTO, *dict.fromkeys(row["dataset"] for row in rows)]
    require(name in known, f"--preset {name}: unknown; {did_you_mean(name, known)}")
    return {row["model"]: row for row in rows if row["dataset"] == name}


def published_size(model: str) -> str:
    match = re.search(r"ViT-?([BL])[-/](\d+)", model)
    return f"ViT-{match.group(1)}/{match.group(2)}" if match else ""


def settings(images: int, classes: int, width: int, size: int, patch: int) -> dict[str, Any]:
    """The settings of `auto`, a pure function of the arguments; docs/selection.md has the reasons.

    Args:
        images: of the split.
        width, size, patch: of the image tower; `size` and `patch` are sides of its input and of a patch, in pixels.
    """
    target = max(images / STEPS_AN_EPOCH, classes)
    batch = 2 ** round(math.log2(min(max(target, BATCHES[0]), BATCHES[1])))
    batch = min(batch, max(images, 1))
    total = IMAGES_AT_WIDTH_128 * math.sqrt(width / TINY_WIDTH)
    epochs = round(min(max(total / max(images, 1), EPOCHS[0]), EPOCHS[1]))
    steps = max(images // batch, 1) * epochs
    slope = math.log(LARGE_LR / TINY_LR) / math.log(LARGE_WIDTH / TINY_WIDTH)
    lr = TINY_LR * (width / TINY_WIDTH) ** slope * math.sqrt(batch / 64) * for_classes(classes, width)
    side = size // patch
    cell = 2 * patch if side >= 8 and side % 2 == 0 else patch
    return {
        "batch_size": batch,
        "epochs": epochs,
        "lr": float(f"{lr * 256 / batch:.3g}"),
        "min_lr": float(f"{lr * 256 / batch / 100:.3g}"),
        "ema_decay_init": round(decay(MEMORY[0] * steps), 5),
        "ema_decay": round(decay(MEMORY[1] * steps), 5),
        "ema_warmup_steps": round(RAMP * steps),
        "mask_patch_size": cell,
        "mask_ratio": 0.1,
        "mask_token": "mean" if width < LARGE_WIDTH else "random",
        "pseudo_labels": "propagated",
        "confident_share": CONFIDENT,
        "fairness_weight": 2.0,
        "align_weight": 0.2,
        "logit_factor": "model",
        "weak_padding": size // 16 if size <= 64 else 0,
        "flip": 0.0,
        "strong_scale": [0.7, 1.0],
        "randaugment": "rand-m5-mstd0.5-inc1",
        "randaugment_ops": [
            "Rotate", "ShearX", "ShearY", "ContrastIncreasing", "BrightnessIncreasing", "SharpnessIncreasing",
        ],
        "alpha": "auto",
    }  # fmt: skip


def for_classes(classes: int, width: int) -> float:
    """The factor of the learning rate for the number of classes: at most 1."""
    return float(min(math.sqrt(TINY_CLASSES / max(classes, 1)), 1.0) ** narrow(width))


def narrow(width: int) -> float:
    """1 up to width 128, 0 from width 768, interpolated by the logarithm between them."""
    return min(max(math.log(LARGE_WIDTH / width) / math.log(LARGE_WIDTH / TINY_WIDTH), 0.0), 1.0)


def decay(memory: float) -> float:
    """The EMA decay that averages over so many steps: 0.9 to 0.9998."""
    return min(max(1 - 1 / max(memory, 1), 0.9), 0.9998)
