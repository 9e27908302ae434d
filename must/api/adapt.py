"""`must.adapt`: images and class names in; an adapted model, labels of the images and a report out, below one folder.

    images, classes -> classifier.safetensors + shards/ -> model/ -> labels/ -> report/

A step is complete when its last file exists, so a call that was stopped resumes at the first incomplete step.
"""

import hashlib
import logging
import os
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import yaml

from must.api.adapted import Adapted
from must.api.functions import run_stage
from must.api.inputs import FOLDERS, entries_of, folder_names, to_source
from must.api.preflight import require_apart
from must.api.record import BUNDLE, LABELS, REPORT, SHARDS, record
from must.api.stages import call
from must.base import storage
from must.base.files import CLASSIFIER_FILE, DESCRIPTION_FILE, INDEX_FILE, RECORD_FILE, REFINED_FILE, REPORT_FILE
from must.base.parameters import check_names, require
from must.config import AdaptConfig, TrainConfig
from must.config.labels import SortConfig
from must.data.shards.listing import open_source
from must.data.sources.base import ListingReport, no_images
from must.data.sources.files import Folder, Manifest
from must.deploy.labels.sort import sort
from must.method.model.classifier import BUNDLED_SET, DEFAULT_TEMPLATE, load_class_set, make_class_set
from must.method.train.recipe import AUTO, RESUME_SAFE_FIELDS, published

logger = logging.getLogger(__name__)

DEFAULT_MODEL, DEFAULT_WEIGHTS = "ViT-B-16", "datacomp_xl_s13b_b90k"  # docs/models.md says why
SET_BY_ADAPT = ("shards", "index_sha256", "classifier", "output", "split", "model", "pretrained", "device")
FEWEST_IMAGES = 11  # images: each is compared with the 10 that are most similar (must/method/select/propagate.py)
CHANGEABLE = RESUME_SAFE_FIELDS - {"preset", "save", "alpha"}  # settings that may change from one call to the next

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
    again: bool = False,
    max_rejected: float = 0.01,
    **settings: Any,
) -> Adapted:
    """Adapts CLIP to images without labels: shard, classifier, train, refine, evaluate, all below `output`.

    Called again with the same arguments, it resumes a stopped call, and returns at once if everything is done.

    Args:
        images: a folder, or whatever `must.shard(source=...)` takes; a list of paths, PIL images or uint8 arrays; a
            Hugging Face `datasets.Dataset` with an image column; or a torch Dataset of images or (image, label) pairs.
            Labels are not read. Images that are not files are written to `output`.
        classes: a list, an array or a Series of names; a dictionary of names with their prompts; a file, .txt with a
            name a line or .yaml; or "folders": the names of the folders in `test_images`, else in `images`.
        output: a folder on this machine.
        model: an open_clip model name, hf-hub:TEAM/NAME, or a model folder.
        pretrained: an open_clip tag or a checkpoint file; DataComp's for the default model.
        test_images: labelled images to measure the accuracy with, which nothing else reads: a folder with a folder a
            class, or a file of labels as `must.sort` takes it (answers, an export of Label Studio or FiftyOne).
        device: auto, cpu, cuda or cuda:N.
        again: with other inputs than `output` was made from: keep what they do not change, and move the rest to a
            folder before-1 in it; without, it is an error once there are shards or a model to lose.
        max_rejected: the largest share of images that cannot be decoded; above it nothing is trained.
        settings: any other parameters of `must.train`: epochs, preset, workers, ...

    Raises:
        must.UserError: wrong input, in one line, or `output` was made from other images, classes or settings.
        must.TransientError: the same call may work later.
    """
    return steps(
        run_stage, images=images, classes=classes, output=os.fspath(output), model=os.fspath(model),
        pretrained=pretrained, test_images=os.fspath(test_images), device=device, again=again,
        max_rejected=max_rejected, settings={name: value for name, value in settings.items() if value is not None},
    )  # fmt: skip


def command(config: AdaptConfig) -> Adapted:
    """The stage `must adapt`; prints the paths of what was written."""
    adapted = steps(lambda stage, values: call(stage, **values), **config.to_dict())
    logger.info(f"model: {adapted.bundle}\nlabels: {adapted.labels}\nreport: {adapted.report}")
    return adapted


def steps(
    run: Run, *, images: Any, classes: Any, output: str, model: str, pretrained: str,
    test_images: str, device: str, settings: dict[str, Any], again: bool = False, max_rejected: float = 0.01,
) -> Adapted:  # fmt: skip
    """The stages in order, each by `run`(stage, parameters)."""
    require("://" not in output, f"output {output}: must be a folder on this machine")
    check_settings(settings)
    folder = Path(output).absolute()
    require_apart(folder, "output")
    require(not folder.is_file(), f"output {output}: is a file; give a folder")
    new = not folder.exists() or not any(folder.iterdir())
    index = folder / SHARDS / INDEX_FILE
    file, content = read_classes(folder_names(test_images or images) if classes == FOLDERS else classes)
    if model == DEFAULT_MODEL:
        pretrained = pretrained or DEFAULT_WEIGHTS
    try:
        image_source = to_source(images, folder, fixed=index.exists() and not again, replace=again)
        decisive = {name: value for name, value in settings.items() if name not in CHANGEABLE}
        test_key = str(Path(test_images).absolute()) if test_images else ""
        if is_labels(test_images):
            test_key += f" ({storage.sha256_of(Path(test_images))[:12]})"
        grown = record(
            folder,
            {
                "images": image_source.key, "classes": hashlib.sha256(content).hexdigest() if content else file,
                "model": str(Path(model).absolute()) if Path(model).is_dir() else model, "pretrained": pretrained,
                "test_images": test_key, "settings": decisive,
            },
            again,
        )  # fmt: skip
        unchecked = not test_images or storage.is_remote(test_images) or "{" in test_images
        require(unchecked or Path(test_images).exists(), f"test_images {test_images}: there is no such folder or file")
        if not index.exists():
            require_enough(image_source.source, str(folder / SHARDS))
        if not file:
            file = str(folder / "classes.yaml")
            storage.write_bytes(file, content)
        parts = (SHARDS, CLASSIFIER_FILE, BUNDLE, LABELS, REPORT)
        shards, classifier, bundle, labels, report = (str(folder / name) for name in parts)
        if not storage.exists(classifier):  # first: without a model, no images are packed
            options = {"model": model, "pretrained": pretrained, "device": device}
            run("classifier", {"classes": file, "output": classifier, **options})
    except BaseException:
        if new and folder.is_dir():
            clean(folder)
        raise
    labelled: dict[str, Any] = {}
    if test_images:
        labelled = {"test_source": labelled_folder(test_images, folder, image_source.source), "labels": "folder"}
    if grown:
        labelled["append"] = True
    workers = {name: value for name, value in settings.items() if name == "workers"}
    run("shard", {"source": image_source.source, "output": shards, "max_rejected": max_rejected, **labelled})
    if not storage.exists(storage.join(bundle, DESCRIPTION_FILE)):
        run("train", {**settings, "shards": shards, "classifier": classifier, "output": bundle, "device": device})
    common = {"shards": shards, "device": device, **workers}
    if not storage.exists(storage.join(labels, REFINED_FILE)):  # the last file that `must refine` writes
        run("refine", {"classifier": classifier, "model": bundle, "output": labels, **common})
    if not storage.exists(storage.join(report, REPORT_FILE)):  # the last file here too
        paths = {"model": bundle, "baseline": classifier, "refined": labels, "output": report}
        run("evaluate", {**paths, "split": "test" if test_images else "train", **common})
    return Adapted(folder)


def require_enough(source: str, shards: str) -> None:
    """Counts images on this machine, up to FEWEST_IMAGES. Raises UserError: there are fewer."""
    if storage.is_remote(source) or "{" in source:
        return
    listing = open_source(source, "none", "images", shards)
    if isinstance(listing, Folder | Manifest):
        problems = ListingReport(lambda name, reason: None)
        count = len(list(islice(listing.items(problems), FEWEST_IMAGES)))
        require(count > 0, f"images {source}: {no_images(problems.skipped)}")
        require(
            count >= FEWEST_IMAGES,
            f"images {source}: too few images ({count}); at least {FEWEST_IMAGES} are needed, and hundreds are better",
        )


def check_settings(settings: dict[str, Any]) -> None:
    """Raises ValueError: a setting that `must train` would refuse, as far as can be checked before there are shards."""
    for name in SET_BY_ADAPT:
        require(name not in settings, f"{name}: is set by must.adapt itself; take it out")
    check_names(TrainConfig, settings, "must.api")
    preset = settings.get("preset") or AUTO
    if preset != AUTO:
        published(preset, "ViT-B-16")
    TrainConfig(shards="-", classifier="-", output="-", **settings)


def read_classes(classes: Any) -> tuple[str, bytes]:
    """(file name, content) of a class file. For names and prompts from Python the file name is '' and the content is
    that of a class file with them. Raises ValueError."""
    if isinstance(classes, str | os.PathLike):
        file = os.fspath(classes)
        if file == BUNDLED_SET:
            return file, b""
        class_set = load_class_set(file)
        if storage.exists(file):
            return file, storage.read_bytes(file)
        classes = list(class_set.names)  # cat,dog,horse
    entries = entries_of(classes)
    make_class_set(entries, [DEFAULT_TEMPLATE], "classes")
    return "", yaml.safe_dump({"classes": entries}, sort_keys=False, allow_unicode=True).encode()


def is_labels(test_images: str) -> bool:
    """Whether it is a file of labels that `must sort` reads, not a folder or an archive of images."""
    return test_images.lower().endswith((".csv", ".json", ".jsonl")) and Path(test_images).is_file()


def labelled_folder(test_images: str, output: Path, images: str) -> str:
    """A folder with one folder of labelled images for each class; for a file of labels, one of links below OUTPUT.
    Paths in the file may be relative to the folder `images`, as in a file of answers."""
    if not is_labels(test_images):
        return test_images
    into = output / f"test-images-{storage.sha256_of(Path(test_images))[:12]}"
    root = images if Path(images).is_dir() else ""
    sort(SortConfig(labels=test_images, into=str(into), named_only=True, root=root))
    return str(into)


def clean(folder: Path) -> None:
    """Removes the files that a refused first call wrote."""
    for name in (RECORD_FILE, "classes.yaml", "images.jsonl"):
        (folder / name).unlink(missing_ok=True)
    if not any(folder.iterdir()):
        folder.rmdir()
