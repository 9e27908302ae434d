"""The recipe of a run: the presets that choose its settings, its identity, its provenance in a bundle.

A preset has the published settings of a data set (presets.yaml), or computes them from data and model (`auto`).

`--preset auto` is for users who cannot tune. The published settings (arXiv 2206.02967) are of ViT-B/16 and ViT-L/14
with 3,760 to 1.28 million images; tiny towers were measured (docs/training.md). Learning rates between them are
interpolated linearly in the logarithms."""

import hashlib
import json
import math
import os
import platform
import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib import metadata, resources
from pathlib import Path
from typing import Any

import yaml

import must
from must.base import storage
from must.base.parameters import require
from must.base.text import suggest_name
from must.config import TrainConfig
from must.config.defaults import ALPHA
from must.data.format import Index
from must.model.classifier import TextClassifier
from must.model.description import Provenance

Settings = dict[str, tuple[Any, str]]  # name -> (value, the reason for it)
AUTO = "auto"
REPORTED = ("dataset", "model", "zero_shot", "must")  # not settings: what the row is for, and its published accuracy


@dataclass(frozen=True)
class Resolved:
    """`config`: all settings of a run; `reasons`: by name, why the preset has set a setting."""

    config: TrainConfig
    reasons: dict[str, str]

    def lines(self) -> list[str]:
        """One line per reason, with its settings."""
        values, by_reason = self.config.to_dict(), dict[str, list[str]]()
        for name, reason in self.reasons.items():
            by_reason.setdefault(reason, []).append(f"{name} {values[name]}")
        return [f"{', '.join(names)}: {reason}" for reason, names in by_reason.items()]


def resolve(config: TrainConfig, index: Index, classifier: TextClassifier) -> Resolved:
    """A run's settings: passed values override the preset's, which override the defaults. Call it once, first."""
    if not config.preset:
        return Resolved(config, {})
    if config.preset == AUTO:
        settings = choose_settings(config, index, classifier)
        if config.is_passed("confidence_threshold"):
            settings["confident_share"] = 0.0, "--confidence-threshold is given"
    else:
        reason = f"--preset {config.preset}, a row of must/config/presets.yaml"
        row = find_published(config.preset, classifier.model)
        settings = {name: (value, reason) for name, value in row.items()}
    chosen = {name: setting for name, setting in settings.items() if not config.is_passed(name)}
    values = {name: value for name, (value, _) in chosen.items()}
    complete = replace(config, **values, passed=config.passed | settings.keys())
    return Resolved(complete, {name: reason for name, (_, reason) in chosen.items()})


def choose_settings(config: TrainConfig, index: Index, classifier: TextClassifier) -> Settings:
    """Settings for the split's number of images, the classifier's classes and the trained model."""
    from must.model.backbone import find_tower_shape  # imports torch

    images = sum(shard.samples for shard in index.list_shards(config.split))
    stored = classifier.model_folder
    shape = find_tower_shape(stored or classifier.model, "" if stored else classifier.pretrained)
    settings = choose_auto_settings(images, len(classifier.classes), *shape)
    if classifier.shares:
        settings["class_prior"] = "given", "the class file has the classes' shares"
    return settings


def find_published(name: str, model: str) -> dict[str, Any]:
    """The settings of a data set for a model of a published size (ViT-B/16 or ViT-L/14)."""
    rows = list_preset_rows(name)
    match = re.search(r"ViT-?([BL])[-/](\d+)", model)
    size = "*" if "*" in rows else f"ViT-{match[1]}/{match[2]}" if match else ""
    require(
        size in rows,
        f"--preset {name}: published for {' and '.join(rows)} only, not for {model}; "
        "give the settings one by one or in a --config file",
    )
    return {key: value for key, value in rows[size].items() if key not in REPORTED}


def list_preset_rows(name: str) -> dict[str, dict[str, Any]]:
    """A preset's rows by the model's size, '*' for any."""
    rows = yaml.safe_load(resources.files("must.config").joinpath("presets.yaml").read_text(encoding="utf-8"))["tasks"]
    known = [AUTO, *dict.fromkeys(row["dataset"] for row in rows)]
    require(name in known, f"--preset {name}: unknown; {suggest_name(name, known)}")
    return {row["model"]: row for row in rows if row["dataset"] == name}


IMAGES_AT_WIDTH_128 = 48_000  # to train on in all epochs at width 128, for small data sets
EPOCHS = (10, 24)
BATCHES = (16, 256)
STEPS_AN_EPOCH = 16
TINY_WIDTH, TINY_LR, TINY_CLASSES = 128, 1e-3, 10  # a measured tower: width, learning rate at batch 64, classes
LARGE_WIDTH, LARGE_LR = 768, 2e-5  # ViT-B, at the same batch, with 43 to 1,000 classes
WIDER = 2  # times the learning rate of ViT-B: as published for ViT-L, on all six data sets with both
MEMORY = 0.12, 0.25  # of the EMA teacher, as shares of all steps: at the start and after the ramp
RAMP = 0.15  # of the steps
CONFIDENT = 0.4  # share of the images that are confident at the start


def choose_auto_settings(images: int, classes: int, width: int, size: int, patch: int) -> Settings:
    """A pure function of the arguments. `images`: of the split; `width`, `size`, `patch`: of the image tower;
    `size` and `patch` are sides of its input and of a patch, in pixels."""
    batch = choose_batch(images, classes)
    total = IMAGES_AT_WIDTH_128 * math.sqrt(width / TINY_WIDTH)
    epochs = round(min(max(total / max(images, 1), EPOCHS[0]), EPOCHS[1]))
    steps = max(images // batch, 1) * epochs
    narrow = min(max(math.log(LARGE_WIDTH / width) / math.log(LARGE_WIDTH / TINY_WIDTH), 0.0), 1.0)  # 0: 768
    many_classes = min(math.sqrt(TINY_CLASSES / max(classes, 1)), 1.0) ** narrow
    slope = math.log(LARGE_LR / TINY_LR) / math.log(LARGE_WIDTH / TINY_WIDTH)
    lr = TINY_LR * (min(width, LARGE_WIDTH) / TINY_WIDTH) ** slope * math.sqrt(batch / 64) * many_classes
    lr *= WIDER if width > LARGE_WIDTH else 1
    side = size // patch
    cell = 2 * patch if side >= 8 and side % 2 == 0 else patch
    return {
        "batch_size": (
            batch,
            "a power of two near a sixteenth of the images, or the number of classes if that is more; 16 to 256: "
            "mostly 16 steps an epoch or more, and the class balance is computed per batch",
        ),
        "epochs": (epochs, "24, and fewer, down to 10, where 24 are more than 48,000 images for a tower of width 128"),
        "lr": (
            float(f"{lr * 256 / batch:.3g}"),
            "1e-3 at width 128, 2e-5 at 768, 4e-5 beyond, for 64 images a step, with the square root of the batch; "
            "less for narrow towers beyond 10 classes",
        ),
        "min_lr": (float(f"{lr * 256 / batch / 100:.3g}"), "a hundredth of lr"),
        "ema_decay_init": (round(choose_decay(MEMORY[0] * steps), 5), "an average over 12% of the steps"),
        "ema_decay": (
            round(choose_decay(MEMORY[1] * steps), 5),
            "an average over 25% of the steps: a shorter one copies the student's errors",
        ),
        "ema_warmup_steps": (round(RAMP * steps), "15% of the steps"),
        "mask_patch_size": (cell, "two patches of the model where there are enough of them, else one"),
        "mask_ratio": (0.1, "as published for small data sets"),
        "mask_token": (
            "mean" if width < LARGE_WIDTH else "random",
            "the mean patch below width 768: where an image has 16 patches, two random ones can change the class",
        ),
        "pseudo_labels": ("propagated", "similar images correct the teacher's errors"),
        "confident_share": (CONFIDENT, "a fixed threshold is another share of the images for each model"),
        "fairness_weight": (2.0, "with less, some classes are no longer predicted"),
        "align_weight": (0.2, "as published"),
        "logit_factor": ("model", "the model's own; it is 100 for CLIP only"),
        "weak_padding": (size // 16 if size <= 64 else 0, "a shift, for images no larger than 64 pixels"),
        "flip": (0.0, "digits, text and signs change with it"),
        "strong_scale": ([0.7, 1.0], "a smaller crop may lose the object"),
        "randaugment": ("rand-m5-mstd0.5-inc1", "weaker than published"),
        "randaugment_ops": (
            ["Rotate", "ShearX", "ShearY", "ContrastIncreasing", "BrightnessIncreasing", "SharpnessIncreasing"],
            "operations that change no class",
        ),
        "alpha": (ALPHA, "a third of the way: more gains more on some data, and harms more on others"),
    }


def choose_batch(images: int, classes: int) -> int:
    target = max(images / STEPS_AN_EPOCH, classes)
    batch = 2 ** round(math.log2(min(max(target, BATCHES[0]), BATCHES[1])))
    return min(batch, max(images, 1))


def choose_decay(memory: float) -> float:
    """The EMA decay that averages over so many steps: 0.9 to 0.9998."""
    return min(max(1 - 1 / max(memory, 1), 0.9), 0.9998)


# Parameters of how and where a run is executed; the result does not depend on them.
RESUME_SAFE_FIELDS = frozenset(
    {"shards", "classifier", "output", "preset", "device", "workers", "checkpoints"}
    | {"checkpoint_every", "checkpoint_seconds", "keep_checkpoints", "resume", "alpha", "log_every"}
    | {"timeout", "accumulate", "activation_checkpointing"}
    | {"index_sha256", "features"}
)


def run_identity(
    config: TrainConfig, index_sha256: str, weights_sha256: dict[str, str], shares: Sequence[float] = ()
) -> dict[str, Any]:
    """All that determines a run's weights: a run may resume from the checkpoint of one with the same identity.

    `weights_sha256`: of the classifier and of the zero-shot model's image tower, by these names."""
    settings = {name: value for name, value in config.to_dict().items() if name not in RESUME_SAFE_FIELDS}
    inputs: dict[str, Any] = {"index_sha256": index_sha256}
    inputs |= {f"sha256 of the {name}": sha256 for name, sha256 in weights_sha256.items()}
    return {**inputs, "class_shares": list(shares) if config.class_prior == "given" else None, **settings}


def run_key(index_sha256: str, classifier: str, settings: dict[str, Any]) -> str:
    """A hash of a run's inputs: a retry finds its checkpoints by it, another run does not."""
    parts = [index_sha256, hashlib.sha256(storage.read_bytes(classifier)).hexdigest(), settings]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def record_provenance(index: Index, **facts: Any) -> Provenance:
    """`facts`: the fields of Provenance that only the trainer knows."""
    packages = ("torch", "open_clip_torch", "timm", "pillow", "numpy")
    versions = {"must": must.__version__, "python": platform.python_version()}
    return Provenance(
        index_sha256=index.sha256,
        index_revision=index.revision,
        git_revision=find_git_revision(),
        versions=versions | {name: metadata.version(name) for name in packages},
        **facts,
    )


def find_git_revision() -> str | None:
    """The commit of the container image (MUST_GIT_REVISION), else of the checkout with this package, if any."""
    if revision := os.environ.get("MUST_GIT_REVISION"):
        return revision
    root = Path(must.__file__).parent.parent
    if not (root / ".git").exists():
        return None
    result = subprocess.run(["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True, check=False)
    return result.stdout.strip() or None
