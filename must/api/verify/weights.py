"""Checks with real pretrained weights; they need a network, for the hub and for the pictures."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, NamedTuple

from must.api.verify.single import Found, Setting, demand
from must.base.files import METRICS_FILE
from must.config import ClassifierConfig, ShardConfig
from must.data.loading.loader import EvalSource
from must.data.loading.reader import open_reader
from must.data.shards.build import shard
from must.evaluation.scores import score_split
from must.method.distributed.process_group import World, pick_device
from must.method.model.bundle import load_description, preprocess_of, selection_of, zero_shot_bundle
from must.method.model.classifier import classifier, load_text_classifier

MODEL, PRETRAINED = "ViT-B-16-quickgelu", "openai"
APART = 2.5  # percent: our templates are not quite theirs
BATCH = 256


def cifar10(folder: str, train: bool) -> Any:
    from torchvision.datasets import CIFAR10

    return CIFAR10(folder, train=train, download=True)


def pets(folder: str, train: bool) -> Any:
    from torchvision.datasets import OxfordIIITPet

    return OxfordIIITPet(folder, split="trainval" if train else "test", download=True)


class Pictures(NamedTuple):
    load: Callable[[str, bool], Any]  # (folder, those for training) -> torchvision's data set, with `classes`
    published: float  # percent of the test pictures, zero-shot of ViT-B/16: arXiv 2103.00020, table 11
    templates: list[str]


PICTURES: Final = {
    "cifar10": Pictures(
        cifar10,
        91.6,
        ["a photo of a {}.", "a blurry photo of a {}.", "a low contrast photo of a {}.", "a photo of the {}."],
    ),
    "pets": Pictures(pets, 88.9, ["a photo of a {}, a type of pet."]),
}


def written(setting: Setting, name: str, split: str) -> Path:
    """The pictures as files, class/number.png."""
    root = setting.folder / name / split
    if not root.with_suffix(".done").exists():
        data = PICTURES[name].load(str(setting.folder / "download"), split == "train")
        for number, (picture, label) in enumerate(data):
            path = root / data.classes[label] / f"{number:05d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            picture.convert("RGB").save(path)
        root.with_suffix(".done").touch()
    return root


def class_file(setting: Setting, name: str, root: Path) -> str:
    path = setting.folder / f"{name}.json"
    names = sorted(folder.name for folder in root.iterdir())
    path.write_text(json.dumps({"classes": names, "templates": PICTURES[name].templates}))
    return str(path)


def zero_shot(setting: Setting, name: str) -> Found:
    root, place, published = written(setting, name, "test"), setting.folder, PICTURES[name].published
    shards, file = str(place / f"{name}-shards"), str(place / f"{name}.safetensors")
    classes = class_file(setting, name, root)
    named = {"model": MODEL, "pretrained": PRETRAINED, "look_alikes": "tower"}
    classifier(ClassifierConfig(classes=classes, output=file, **named))
    shard(ShardConfig(source=str(root), labels="folder", output=shards))
    bundle, device = zero_shot_bundle(load_text_classifier(file)), pick_device(setting.device)
    source = EvalSource(open_reader(shards, "train"), preprocess_of(bundle.description), BATCH, 4)
    samples, (scores,) = score_split([bundle.model], source, bundle.description.classes, World(0, 1, device))
    right = scores.prediction == samples.labels
    accuracy, said = 100 * float(right.mean()), f"{100 * right.mean():.1f}%, published {published}%"
    return demand(abs(accuracy - published) < APART, said, accuracy=accuracy, images=len(right))


def adaptation(setting: Setting, name: str) -> Found:
    """`must adapt` on the training pictures, without their labels: its metrics, and what the ladder saw (kappa, z)."""
    root, tests, output = written(setting, name, "train"), written(setting, name, "test"), setting.folder / "adapted"
    command = [
        sys.executable, "-m", "must", "adapt", "--images", root, "--test-images", tests, "--classes",
        class_file(setting, name, root), "--model", MODEL, "--pretrained", PRETRAINED, "--output", output,
        "--device", setting.device,
    ]  # fmt: skip
    code = subprocess.run([str(part) for part in command]).returncode
    demand(code == 0, f"`must adapt` ended with code {code}")
    selection = selection_of(load_description(str(output / "model")))
    values = json.loads((output / "report" / METRICS_FILE).read_text()) | {"selection": selection}
    rungs = ", ".join(f"{rung['alpha']:g}: {rung['z']:.1f}" for rung in selection.get("rungs", []))
    kappa = selection.get("agreement")
    said = "not looked at" if kappa is None else f"{kappa:.2f}"
    return demand(
        bool(selection), f"alpha {selection.get('alpha', 0):g} is kept; kappa {said}, z of the rungs {rungs}", **values
    )
