"""`must.adapt`: images and class names in, an adapted model and its report out, all below one folder.

    images, classes -> shards/ + classifier.safetensors -> model/ -> report/

Each step's last file says that it is whole, so a call that was stopped goes on where it was. adapt.json holds what the
folder is made from; a call with anything else is refused.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from must.api.adapted import BUNDLE, CLASSIFIER, REPORT, SHARDS, Adapted
from must.api.classes import entries_of
from must.api.functions import run_stage
from must.api.images import provide
from must.api.stages import call
from must.base import storage
from must.base.parameters import check_names, require
from must.config import AdaptConfig, TrainConfig
from must.data.format.index import NAME
from must.method.model.bundle import DESCRIPTION_FILE
from must.method.model.classifier import BUNDLED_SET, load_class_set
from must.method.train.presets import settings_of
from must.method.train.provenance import RESUME_SAFE_FIELDS

RECORD = "adapt.json"
DEFAULT_MODEL, ITS_WEIGHTS = "ViT-B-16", "openai"
OWN = ("shards", "index_sha256", "classifier", "output", "split", "model", "pretrained", "device")
FREE = RESUME_SAFE_FIELDS - {"preset", "save", "select"}  # settings that may change from one call to the next

PARTS = {
    "images": f"{SHARDS}/{NAME}", "test_images": f"{SHARDS}/{NAME}", "classes": CLASSIFIER, "model": CLASSIFIER,
    "pretrained": CLASSIFIER, "settings": BUNDLE,
}  # fmt: skip
"""By input: what may not be there yet, if the input is to change."""

Run = Callable[[str, dict[str, Any]], Any]


def adapt(
    images: Any,
    *,
    classes: Any,
    output: str | os.PathLike[str],
    model: str | os.PathLike[str] = DEFAULT_MODEL,
    pretrained: str = "",
    test_images: str | os.PathLike[str] = "",
    device: str = "auto",
    **settings: Any,
) -> Adapted:
    """Adapts CLIP to images without labels: shard, classifier, train, evaluate, all below `output`.

    The same call goes on where an earlier one was stopped, and returns at once where it was finished.

    Args:
        images: a folder, or whatever `must.shard(source=...)` takes; a list of paths, PIL images or uint8 arrays; a
            Hugging Face `datasets.Dataset` with an image column; or a torch Dataset of images or (image, label) pairs.
            Labels are not read. Images that are no files are written to `output`.
        classes: a list of names; a dictionary of names with their prompts; or a file, .txt with a name a line or .yaml.
        output: a folder on this machine.
        model: an open_clip model name, hf-hub:TEAM/NAME, or a model folder.
        pretrained: an open_clip tag or a checkpoint file; openai for the default model.
        test_images: a folder with a folder of labelled images a class, to measure the accuracy with; nothing else reads
            the labels.
        device: auto, cpu, cuda or cuda:N.
        settings: any other parameters of `must.train`: epochs, preset, workers, ...

    Raises:
        ValueError: the user's error, in one line, or `output` was made from other images, classes or settings; where
            the same call may work later, must.base.storage.TransientError, a kind of it.
    """
    given = {"images": images, "classes": classes, "output": os.fspath(output), "model": os.fspath(model)}
    rest = {"pretrained": pretrained, "test_images": os.fspath(test_images), "device": device}
    return steps(run_stage, **given, **rest, settings={k: v for k, v in settings.items() if v is not None})


def command(config: AdaptConfig) -> Adapted:
    """The stage `must adapt`; prints where everything is."""
    adapted = steps(lambda stage, values: call(stage, **values), **config.to_dict())
    print(f"adapted: the model is {adapted.bundle}, the report {adapted.report}")
    return adapted


def steps(
    run: Run, *, images: Any, classes: Any, output: str, model: str, pretrained: str, test_images: str, device: str,
    settings: dict[str, Any],
) -> Adapted:  # fmt: skip
    """The stages in order, each by `run`(stage, parameters)."""
    require("://" not in output, f"output {output}: must be a folder on this machine")
    check_settings(settings)
    folder = Path(output).absolute()
    new = not folder.exists()
    index = folder / SHARDS / NAME
    try:
        file = class_file(classes, folder)
        if model == DEFAULT_MODEL:
            pretrained = pretrained or ITS_WEIGHTS
        taken = provide(images, folder, fixed=index.exists())
        decisive = {name: value for name, value in settings.items() if name not in FREE}
        record(
            folder,
            {
                "images": taken.key, "classes": key_of(file), "model": named(model), "pretrained": pretrained,
                "test_images": str(Path(test_images).absolute()) if test_images else "", "settings": decisive,
            },
        )  # fmt: skip
    except BaseException:
        if new and folder.is_dir():
            clean(folder)
        raise
    shards, classifier, bundle, report = (str(folder / name) for name in (SHARDS, CLASSIFIER, BUNDLE, REPORT))
    labelled = {"test_source": test_images, "labels": "folder"} if test_images else {}
    workers = {name: value for name, value in settings.items() if name == "workers"}
    run("shard", {"source": taken.source, "output": shards, **labelled})
    if not storage.exists(classifier):
        run(
            "classifier",
            {"classes": file, "model": model, "pretrained": pretrained, "output": classifier, "device": device},
        )
    if not storage.exists(storage.join(bundle, DESCRIPTION_FILE)):
        run("train", {**settings, "shards": shards, "classifier": classifier, "output": bundle, "device": device})
    if not storage.exists(storage.join(report, "report.html")):  # the last that is written
        split = "test" if test_images else "train"
        places = {"model": bundle, "baseline": classifier, "shards": shards, "output": report}
        run("evaluate", {**places, "split": split, "device": device, **workers})
    return Adapted(folder)


def check_settings(settings: dict[str, Any]) -> None:
    """Raises ValueError: a setting that `must train` would refuse, as far as can be told before there are shards."""
    for name in OWN:
        require(name not in settings, f"{name}: is set by must.adapt itself; take it out")
    check_names(TrainConfig, settings, "must.api")
    preset = settings.get("preset") or "auto"
    if preset != "auto":
        settings_of({"preset": preset, "model": "ViT-B-16"})
    rest = {name: value for name, value in settings.items() if name != "preset"}
    TrainConfig(shards="-", classifier="-", output="-", **rest)


def class_file(classes: Any, folder: Path) -> str:
    """A file of the classes; names and prompts from Python are written to OUTPUT/classes.yaml. Raises ValueError."""
    if isinstance(classes, str | os.PathLike):
        file = os.fspath(classes)
        if file != BUNDLED_SET:
            load_class_set(file)
        return file
    file = str(folder / "classes.yaml")
    content = yaml.safe_dump({"classes": entries_of(classes)}, sort_keys=False, allow_unicode=True).encode()
    if not storage.exists(str(folder / CLASSIFIER)):
        storage.write_bytes(file, content)
        load_class_set(file)
    require(
        storage.read_bytes(file) == content,
        f"{folder}: was made from other classes; choose another output, or delete the folder",
    )
    return file


def key_of(file: str) -> str:
    return file if file == BUNDLED_SET else hashlib.sha256(storage.read_bytes(file)).hexdigest()


def named(model: str) -> str:
    """The model in whatever folder this program runs."""
    return str(Path(model).absolute()) if Path(model).is_dir() else model


def record(folder: Path, inputs: dict[str, Any]) -> None:
    """Remembers what the folder is made from. Raises ValueError: a part of it was made from something else."""
    place, now = folder / RECORD, json.loads(json.dumps(inputs, default=str))
    before = storage.read_json(str(place), "adapt") if place.exists() else now
    other = [
        name.replace("_", " ") for name in now if before.get(name) != now[name] and (folder / PARTS[name]).exists()
    ]
    require(not other, f"{folder}: was made from other {', '.join(other)}; choose another output, or delete the folder")
    if before != now or not place.exists():
        storage.write_bytes(str(place), json.dumps(now, indent=1).encode())


def clean(folder: Path) -> None:
    """Takes away what a refused first call wrote."""
    for name in ("classes.yaml", "images.jsonl"):
        (folder / name).unlink(missing_ok=True)
    if not any(folder.iterdir()):
        folder.rmdir()
