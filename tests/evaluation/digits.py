"""A small real task, made once: shards of handwritten digits, the bundled CLIP, and a model adapted to them.

The "adapted" model is tuned with labels for a second: these tests need a model that is better than zero-shot, not
the method that makes one.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
import yaml

from must.api.demo import CLASSES, TEMPLATES, find_assets, load_digits
from must.base.parameters import make_record
from must.config import ClassifierConfig, EvaluateConfig, ShardConfig
from must.data.augment import normalize
from must.data.image.preprocess import EvalView
from must.data.shards.build import shard
from must.model.bundle import Bundle, make_zero_shot_bundle, save_bundle
from must.model.classifier import classifier, load_text_classifier
from must.model.description import Provenance, get_preprocess
from tests.once import made_once

torch.set_num_threads(1)  # the model is so small that threads cost more than they bring


class Digits(NamedTuple):
    """Paths; every image has a label in both splits, train (150 images) and test (120)."""

    images: Path  # train/<class>/*.png and test/<class>/*.png
    shards: str
    classifier: str
    zero_shot: str  # bundle
    adapted: str  # bundle


@cache
def digits() -> Digits:
    root = made_once("digits", make)
    adapted, zero_shot = str(root / "adapted"), str(root / "zero-shot")
    return Digits(root / "images", str(root / "shards"), str(root / "classifier.safetensors"), zero_shot, adapted)


def evaluation(digits: Digits, output: Path, **changes: Any) -> EvaluateConfig:
    """Of the adapted model and zero-shot, on the split test."""
    values = {"model": digits.adapted, "baseline": digits.classifier, "shards": digits.shards, "output": str(output)}
    return EvaluateConfig(**values | {"workers": 0, "device": "cpu"} | changes)


def make(root: Path) -> None:
    parts = load_digits()
    for split, images in (("train", parts["validation"][:150]), ("test", parts["test"][:120])):
        for number, (image, label) in enumerate(images):
            path = root / "images" / split / label / f"{number:04d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            image.save(path)
    shards = str(root / "shards")
    sources = {"source": str(root / "images/train"), "test_source": str(root / "images/test"), "labels": "folder"}
    shard(ShardConfig(**sources, output=shards, samples_per_shard=64, workers=1))
    (root / "classes.yaml").write_text(yaml.safe_dump({"classes": list(CLASSES), "templates": list(TEMPLATES)}))
    weights = str(root / "classifier.safetensors")
    of = {"classes": str(root / "classes.yaml"), "model": str(find_assets())}
    classifier(ClassifierConfig(**of, output=weights, device="cpu"))
    baseline = make_zero_shot_bundle(load_text_classifier(weights))
    save_bundle(str(root / "zero-shot"), baseline.model, baseline.description)
    tune(baseline, parts["validation"][:150])
    story = {"config": {"epochs": 3, "shards": shards}, "index_sha256": "0" * 64, "summary": {"steps": 30}}
    story |= {"selection": {"alpha": 1.0}}  # as `must train` writes it
    description = replace(baseline.description, provenance=make_record(Provenance, story))
    save_bundle(str(root / "adapted"), baseline.model, description)


def tune(bundle: Bundle, images: list) -> None:
    torch.manual_seed(0)
    pixels = torch.from_numpy(decode_pixels(bundle, [image for image, _ in images]))
    inputs = normalize(pixels, get_preprocess(bundle.description))
    targets = torch.tensor([CLASSES.index(label) for _, label in images])
    optimizer = torch.optim.AdamW(bundle.model.parameters(), lr=3e-4)
    for _ in range(8):
        for rows in torch.randperm(len(inputs)).split(50):
            optimizer.zero_grad()
            F.cross_entropy(bundle.model(inputs[rows]), targets[rows]).backward()
            optimizer.step()


def decode_pixels(bundle: Bundle, images: list) -> np.ndarray:
    view = EvalView(get_preprocess(bundle.description))
    return np.stack([view(image.convert("RGB")) for image in images])
