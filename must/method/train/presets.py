"""Settings of a preset: published ones for a data set (presets.yaml), or computed from data and model (`auto`)."""

import re
from dataclasses import dataclass, replace
from importlib import resources
from typing import Any

import yaml

from must.base.parameters import require
from must.base.text import did_you_mean
from must.config import TrainConfig
from must.data.format.index import Index
from must.method.model.classifier import TextClassifier
from must.method.train.auto import REASONS, settings

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
        values, reasons = auto(config, index, classifier), REASONS
        if config.is_passed("confidence_threshold"):
            values["confident_share"], reasons = 0.0, reasons | {"confident_share": "--confidence-threshold is given"}
    else:
        values = published(config.preset, config.model or classifier.model)
        reasons = dict.fromkeys(values, f"--preset {config.preset}, a row of must/config/presets.yaml")
    preset_values = {name: value for name, value in values.items() if not config.is_passed(name)}
    complete = replace(config, **preset_values, passed=config.passed | values.keys())
    return Resolved(complete, {name: reasons[name] for name in preset_values})


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
    """The settings of a data set for a model of a published size (ViT-B/16 or ViT-L/14)."""
    rows = rows_of(name)
    size = "*" if "*" in rows else published_size(model)
    require(
        size in rows,
        f"--preset {name}: published for {' and '.join(rows)} only, not for {model}; "
        "give the settings one by one or in a --config file",
    )
    return {key: value for key, value in rows[size].items() if key not in REPORTED}


def rows_of(name: str) -> dict[str, dict[str, Any]]:
    """A preset's rows by the model's size, '*' for any."""
    rows = yaml.safe_load(resources.files("must.config").joinpath("presets.yaml").read_text(encoding="utf-8"))["tasks"]
    known = [AUTO, *dict.fromkeys(row["dataset"] for row in rows)]
    require(name in known, f"--preset {name}: unknown; {did_you_mean(name, known)}")
    return {row["model"]: row for row in rows if row["dataset"] == name}


def published_size(model: str) -> str:
    match = re.search(r"ViT-?([BL])[-/](\d+)", model)
    return f"ViT-{match.group(1)}/{match.group(2)}" if match else ""
