"""Checks with real pretrained weights; they need a network, for the hub and for the pictures."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import torch

from must.api.verify.single import Found, Setting, demand
from must.config import ClassifierConfig, ShardConfig
from must.data.augment.normalize import normalize
from must.data.loading.loader import EvalSource
from must.data.loading.reader import open_reader
from must.data.shards.build import shard
from must.method.distributed.process_group import pick_device
from must.method.model.bundle import preprocess_of, zero_shot_bundle
from must.method.model.classifier import classifier, load_text_classifier

MODEL = "ViT-B-16-quickgelu"
PUBLISHED, APART = 91.6, 2.5  # CIFAR-10, arXiv 2103.00020, table 11; our templates are not quite theirs
TEMPLATES = ["a photo of a {}.", "a blurry photo of a {}.", "a low contrast photo of a {}.", "a photo of the {}."]


def cifar(setting: Setting) -> Path:
    """CIFAR-10 as folders of pictures, split/class/number.png."""
    from torchvision.datasets import CIFAR10

    root = setting.folder / "cifar"
    for split in ("train", "test"):
        if not (root / f"{split}.done").exists():
            data = CIFAR10(str(setting.folder / "download"), train=split == "train", download=True)
            for number, (picture, label) in enumerate(data):
                path = root / split / data.classes[label] / f"{number:05d}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                picture.save(path)
            (root / f"{split}.done").touch()
    return root


def classes(setting: Setting, root: Path) -> str:
    path = setting.folder / "cifar.json"
    names = sorted(folder.name for folder in (root / "test").iterdir())
    path.write_text(json.dumps({"classes": names, "templates": TEMPLATES}))
    return str(path)


def zero_shot(setting: Setting) -> Found:
    root, place = cifar(setting), setting.folder
    shards, file = str(place / "cifar-test"), str(place / "cifar.safetensors")
    values = {"classes": classes(setting, root), "model": MODEL, "pretrained": "openai", "look_alikes": "tower"}
    classifier(ClassifierConfig(**values, output=file))
    shard(ShardConfig(source=str(root / "test"), labels="folder", output=shards))
    bundle, device = zero_shot_bundle(load_text_classifier(file)), pick_device(setting.device)
    model, preprocess = bundle.model.to(device).eval(), preprocess_of(bundle.description)
    right = total = 0
    with torch.inference_mode():
        for batch in EvalSource(open_reader(shards, "train"), preprocess, 256, 4):
            found = model(normalize(batch.pixels.to(device), preprocess)).argmax(-1).tolist()
            right += sum(bundle.description.classes[n] == label for n, label in zip(found, batch.labels, strict=True))
            total += len(found)
    accuracy = 100 * right / total
    return demand(
        abs(accuracy - PUBLISHED) < APART, f"{accuracy:.1f}%, published {PUBLISHED}%", accuracy=accuracy, images=total
    )


def adaptation(setting: Setting) -> Found:
    """`must adapt` on CIFAR-10's training pictures, without their labels; gain on the test pictures."""
    root, output = cifar(setting), setting.folder / "adapted"
    command = [
        sys.executable, "-m", "must", "adapt", "--source", root / "train", "--test-source", root / "test", "--labels",
        "folder", "--classes", classes(setting, root), "--model", MODEL, "--pretrained", "openai", "--output", output,
    ]  # fmt: skip
    code = subprocess.run([str(part) for part in command]).returncode
    metrics = next(iter(output.rglob("metrics.json")), None)
    values = json.loads(metrics.read_text()) if metrics else {}
    return demand(
        code == 0 and bool(values), f"`must adapt` ended with code {code}; its metrics are in the JSON", **values
    )
