"""`must.adapt`: images and class names in; a model, labels of the images and a report out, below one folder, WORK.

    images, classes -> classifier.safetensors + shards/ -> model/ + labels/ (one pass, no training) -> report/
                    -> training, with a CUDA GPU or if asked for -> model/ + labels/ -> report/

A call with the same words goes on where it was stopped, and does what is new since: other photos, classes or settings
(must/api/work_state.py). Everything is checked before anything is written."""

import ctypes
import json
import logging
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from must.api.inputs import ImageSource, fingerprint_source, identify_model, read_classes, to_source
from must.api.model import Adapted
from must.api.stages import call, check_device, require_apart, resumable
from must.api.work_state import (
    BUNDLE,
    FEATURES,
    LABELS,
    REPORT,
    SHARDS,
    TEST,
    WorkState,
    check_places,
    is_trained,
    link_or_copy,
    remove,
)
from must.base import storage
from must.base.console import replaced
from must.base.errors import UserError
from must.base.lock import Kind, locked
from must.base.parameters import check_names, naming_parameters, require
from must.base.processes import check_processes
from must.base.program import load_torch
from must.base.text import pluralize
from must.config import AdaptConfig, TrainConfig
from must.config.work import CHECKPOINTS, CLASSIFIER_FILE, INDEX_FILE, NEXT_PREFIX, PARTS
from must.data.format import load_index
from must.method.model.classifier import read_header
from must.method.model.description import load_description
from must.method.model.hub import MODELS_FOLDER, check_model_name
from must.method.train.recipe import AUTO, RESUME_SAFE_FIELDS, find_published

logger = logging.getLogger(__name__)

DEFAULT_MODEL, DEFAULT_WEIGHTS = "ViT-B-16", "datacomp_xl_s13b_b90k"  # docs/models.md says why
SET_BY_ADAPT = ("shards", "features", "index_sha256", "classifier", "output", "split", "model", "pretrained", "device")
CHANGEABLE = RESUME_SAFE_FIELDS - {"preset", "alpha"}  # settings that may change from one call to the next
FEWEST_IMAGES = 11  # images: each is compared with the 10 that are most similar (must/method/model/memory.py)
APPENDED = "append"  # a folder for shards to which images are being appended
ADAPT_LOCK = Kind("must adapt", "--output", ".adapt.lock")


@naming_parameters()
def adapt(
    images: Any,
    *,
    classes: Any,
    output: str | os.PathLike[str],
    model: str | os.PathLike[str] = DEFAULT_MODEL,
    pretrained: str = "",
    test_images: str | os.PathLike[str] = "",
    train: str | bool = "auto",
    device: str = "auto",
    again: bool = False,
    max_rejected: float = 0.01,
    **settings: Any,
) -> Adapted:
    """Adapts CLIP to images without labels: shard, classifier, refine, evaluate, and train, all below `output`.

    Called again with the same arguments, it resumes a stopped call, does what is new in the images, and returns at once
    if everything is done.

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
            class, or a table (.csv) with the columns image and class. They may be among `images`.
        train: "no" or False: one pass over the images, and a memory of them; "yes" or True: training besides; "auto":
            training, too, where there is a CUDA GPU.
        device: auto, cpu, cuda or cuda:N.
        again: make everything anew; what there is goes to the folder before/ in `output`.
        max_rejected: the largest share of images that cannot be decoded; above it nothing is adapted.
        settings: any other parameters of `must.train`: epochs, preset, workers, ...

    Raises:
        must.UserError: wrong input, in one line; `output` is as it was.
        must.TransientError: the same call may work later."""
    training = train if isinstance(train, str) else "yes" if train else "no"
    with resumable("adapt"):
        return run_stages(
            images=images, classes=classes, output=os.fspath(output), model=os.fspath(model), pretrained=pretrained,
            test_images=os.fspath(test_images), train=training, device=device, again=again, max_rejected=max_rejected,
            settings={name: value for name, value in settings.items() if value is not None},
        )  # fmt: skip


def command(config: AdaptConfig) -> Adapted:
    """The stage `must adapt`; prints the paths of what was written."""
    adapted = run_stages(**config.to_dict())
    logger.info(f"model: {adapted.bundle}\nlabels: {adapted.labels}\nreport: {adapted.report}")
    return adapted


def run_stages(
    *, images: Any, classes: Any, output: str, model: str, pretrained: str, test_images: str, train: str, device: str,
    settings: dict[str, Any], again: bool, max_rejected: float,
) -> Adapted:  # fmt: skip
    """The stages in order."""
    folder = Path(output).absolute()
    require("://" not in output, f"output {output}: must be a folder on this machine")
    require(not folder.is_file(), f"output {output}: is a file; give a folder")
    require_apart(folder, "output")
    require(train in ("auto", "yes", "no"), f"train {train}: expected auto, yes or no")
    wanted = parse_settings(settings)
    check_device(device)
    file, content, class_key = read_classes(classes, test_images or images)
    if model == DEFAULT_MODEL:
        pretrained = pretrained or DEFAULT_WEIGHTS
    check_places(folder, {"--images": images, "--test-images": test_images, "--model": model})
    check_model_name(model, pretrained)
    shown = replaced(
        rf"{re.escape(str(folder))}/{re.escape(NEXT_PREFIX)}\w+(/{APPENDED})?", str(folder)
    )  # as at the end
    with shown, open_work(folder) as scratch:
        source = to_source(images, scratch)
        found = fingerprint_source(source, "--images", output, FEWEST_IMAGES)
        inputs = {
            "images": found.key,
            "test_images": fingerprint_source(ImageSource(test_images), "--test-images", output, 1).key,
            "classes": class_key,
            "model": identify_model(model),
            "pretrained": identify_model(pretrained),
            "settings": {name: value for name, value in settings.items() if name not in CHANGEABLE},
        }
        words = {
            "images": images, "classes": classes, "model": model, "pretrained": pretrained, "test_images": test_images,
            "train": train, "device": device, "settings": settings, "max_rejected": max_rejected,
        }  # fmt: skip
        state = WorkState(folder, inputs, again, record_words(words))
        workers = wanted.workers if isinstance(wanted.workers, int) else None  # those who read images, too
        pack = {"max_rejected": max_rejected, "workers": None if workers is None else max(1, workers)}
        try:
            if not all(state.part(name).exists() for name in (CLASSIFIER_FILE, MODELS_FOLDER)):  # without it, no pass
                if not file:
                    file = str(state.part(PARTS["classes"].path))
                    storage.write_bytes(file, content)
                named = {"classes": file, "model": model, "pretrained": pretrained, "device": device}
                call("classifier", **named, output=state.part(CLASSIFIER_FILE))
            if test_images:
                pack_test(state, test_images, pack)
        except BaseException:
            state.abandon()
            raise
        if state.why:
            logger.info(state.why)
        if not (state.part(SHARDS) / INDEX_FILE).exists():
            pack_images(state, source.source, scratch, found.files, pack)
        state.compare_images()
        state.keep_trained()
        common = {"shards": state.part(SHARDS), "features": state.part(FEATURES), "device": device, "workers": workers}
        training = settings | {"classifier": state.part(CLASSIFIER_FILE), "output": state.part(BUNDLE)}
        training |= {"shards": state.part(SHARDS), "features": state.part(FEATURES), "device": device}
        if not state.weights_sha256() and (state.part(BUNDLE) / CHECKPOINTS).exists():
            call("train", **training)  # a kill while the model was written left checkpoints without it
        up_to_date = state.labels_are_up_to_date() and state.report_is_up_to_date()
        make_model(state, common)
        if should_train(state, train, settings, wanted, common):
            if not up_to_date and not is_trained(state.part(BUNDLE).parent):
                logger.info("this is the result of the memory alone; now training, and the same with the trained model")
            call("train", **training)
            make_model(state, common)
            up_to_date = False
        state.exports |= state.find_old_exports()
        if up_to_date and not state.changed and not state.damaged and not state.exports:
            logger.info("nothing has changed")
        state.finish()
        export_again(state)
    return Adapted(folder)


PATHS = ("images", "classes", "model", "pretrained", "test_images")  # words of a call that may be paths


def record_words(words: dict[str, Any]) -> dict[str, Any]:
    """The call in JSON, for `must adapt WORK`: paths on this machine from the root, without what cannot be written."""
    recorded = dict[str, Any]()
    for name, value in words.items():
        if name == "images" and not isinstance(value, str | os.PathLike):
            continue  # of a program, which gives them again
        if isinstance(value, os.PathLike):
            value = os.fspath(value)
        is_word = value in ("folders", "imagenet") if name == "classes" else name not in PATHS
        if value and isinstance(value, str) and not is_word and "://" not in value:
            with suppress(OSError):  # too long for a path: names of classes
                value = str(Path(value).absolute()) if Path(value).exists() else value
        with suppress(TypeError, ValueError):
            recorded[name] = json.loads(json.dumps(value))
    return recorded


def shard(flag: str, **values: Any) -> None:
    """Runs must shard, whose errors about the source name the flag that it was given with."""
    try:
        call("shard", **values)
    except UserError as error:
        error.args = (re.sub("^--source", flag, str(error)),)
        raise


def pack_test(state: WorkState, test_images: str, pack: dict[str, Any]) -> None:
    if not (state.part(TEST) / INDEX_FILE).exists():
        is_table = test_images.lower().endswith((".csv", ".tsv", ".jsonl")) and Path(test_images).is_file()
        labels = {"labels": "csv" if is_table else "folder", "split": {"test": 1.0}}
        shard("--test-images", source=test_images, **labels, **pack, output=state.part(TEST))
    check_labels(test_images, state)


def pack_images(state: WorkState, source: str, scratch: Path, files: np.ndarray, pack: dict[str, Any]) -> None:
    """Makes the shards, or appends to those that there are. `files`: of the source (must/api/inputs.py)."""
    uri: str | Path = source
    if (written := Path(source)).parent == scratch:  # images that were in memory, or the list of their paths
        uri = state.part(written.name)
        if not uri.exists():  # else of a call that was interrupted, with the same key
            written.rename(uri)
    if not (state.adds_only(str(uri), files) and append(state, uri, len(files), pack)):
        shard("--images", source=uri, output=state.part(SHARDS), **pack)
    state.record_files(files)


def export_again(state: WorkState) -> None:
    """The exports of a model that was replaced, from the new one, with the parameters of before."""
    for to, made in state.exports.items():
        output = state.work / to
        try:
            call("export", model=state.work, to=to, output=output, **made)
        except UserError as error:
            logger.warning(f"warning: {output} was not made again: {error}; make it: must export {state.work}")
    state.end_exports()


def append(state: WorkState, source: str | Path, files: int, pack: dict[str, Any]) -> bool:
    """Appends the source's new images to the shards that there are, in the new place of shards. False: one of them is
    a copy of an old image, which would get no row of its own, or too many are damaged to tell without the others.
    `files`: that the source has."""
    old, half = state.work / SHARDS, state.folder / APPENDED / SHARDS
    remove(half)  # of a call that was killed
    half.parent.mkdir(exist_ok=True)
    shutil.copytree(old, half, copy_function=link_or_copy)
    try:
        call("shard", source=source, output=half, append=True, **pack)
        index = load_index(str(half))
        if index.dropped or sum(shard.samples for shard in index.shards) + index.rejected != files:
            return False
        half.rename(state.part(SHARDS))
    except UserError:
        return False
    finally:
        remove(half)
    return True


def make_model(state: WorkState, common: dict[str, Any]) -> None:
    """Gives the model its memory, the images their labels, and writes the report, where they are not of this model."""
    classifier, model, labels = map(state.part, (CLASSIFIER_FILE, BUNDLE, LABELS))
    if not state.labels_are_up_to_date():
        paths = {"classifier": classifier, "model": model, "output": labels, "answers": state.answers() or None}
        call("refine", **common | paths | state.promised())
    if not state.report_is_up_to_date():
        measured = {"shards": state.part(TEST), "split": "test"} if state.inputs["test_images"] else {"split": "train"}
        paths = {"model": model, "baseline": classifier, "refined": labels, "output": state.part(REPORT)}
        call("evaluate", **common | paths | measured)


def should_train(
    state: WorkState, train: str, settings: dict[str, Any], wanted: TrainConfig, common: dict[str, Any]
) -> bool:
    """Whether training is wanted and not done yet; says what it would take if it is not worth it here."""
    origin = load_description(str(state.part(BUNDLE))).provenance
    if train == "no":
        return False
    compared = {"preset", *settings} - CHANGEABLE
    is_trained = origin.config and all(origin.config.get(name) == getattr(wanted, name) for name in compared)
    if is_trained and "settings" not in state.changed:
        same = origin.index_sha256 == load_index(str(state.part(SHARDS))).sha256
        if not same and train == "auto":
            logger.info("the model was trained on other images, and has a memory of these; --train yes trains it again")
        if same or train == "auto":
            return False
    return train == "yes" or (common["device"].startswith(("auto", "cuda")) and has_gpu())


def has_gpu() -> bool:
    """Whether torch finds a CUDA GPU. Where there is no driver, torch is not imported, which takes seconds."""
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    load_torch("adapt")
    import torch

    return torch.cuda.is_available()


def check_labels(test_images: str, state: WorkState) -> None:
    """Raises UserError: no labelled image has a label, or one is not a class."""
    labels = load_index(str(state.part(TEST))).labels
    require(
        bool(labels),
        f"--test-images {test_images}: none of the images has a label; give a folder that holds a folder of each class",
    )
    classes = set(read_header(str(state.part(CLASSIFIER_FILE)), "--classifier").classes)
    unknown = [label for label in labels if label not in classes]
    names = ", ".join(unknown[:3]) + (", ..." if len(unknown) > 3 else "")
    require(
        not unknown,
        f"--test-images {test_images}: {pluralize(len(unknown), 'label')} not among the classes ({names}); rename "
        "them, or add the class",
    )


@contextmanager
def open_work(work: Path) -> Iterator[Path]:
    """Locks WORK; yields a folder in it for what is written before the inputs are known to be right. At the end that is
    removed, and WORK if it is empty."""
    try:
        with locked(str(work), ADAPT_LOCK), TemporaryDirectory(prefix=NEXT_PREFIX, dir=work) as scratch:
            yield Path(scratch)
    finally:
        with suppress(OSError):
            work.rmdir()


def parse_settings(settings: dict[str, Any]) -> TrainConfig:
    """Raises ValueError: a setting that `must train` would refuse, as far as can be checked before there are shards."""
    for name in SET_BY_ADAPT:
        require(name not in settings, f"{name}: is set by must.adapt itself; take it out")
    check_names(TrainConfig, settings, "settings")
    wanted = TrainConfig(shards="-", classifier="-", output="-", **{"preset": AUTO} | settings)
    if wanted.preset not in ("", AUTO):
        find_published(wanted.preset, "ViT-B-16")
    if isinstance(wanted.workers, int):
        check_processes(wanted.workers, "--workers")
    return wanted
