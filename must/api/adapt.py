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
import shlex
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from must.api.inputs import (
    ClassNames,
    ImageSource,
    fingerprint_source,
    identify_model,
    read_classes,
    record_words,
    rename_classes,
    to_source,
)
from must.api.model import Adapted
from must.api.stages import check_device, require_apart, resumable, run
from must.api.work_state import (
    BUNDLE,
    FEATURES,
    FILES,
    LABELS,
    MADE_FROM,
    MODELS,
    REPORT,
    SHARDS,
    TEST,
    WorkState,
    check_places,
    describe_images,
    hash_inputs,
    link_or_copy,
    read_value,
    remove,
)
from must.base import storage
from must.base.console import replaced, spoken_by, write_lines
from must.base.errors import UserError
from must.base.lock import Kind, locked
from must.base.parameters import check_names, list_parameters, naming_parameters, require
from must.base.processes import check_processes
from must.base.program import load_torch
from must.base.text import close_to, pluralize
from must.config import AdaptConfig, TrainConfig
from must.config.work import BESIDE, CHECKPOINTS, CLASSIFIER_FILE, INDEX_FILE, PARTS, RECORD_FILE, WORDS, outdate_report
from must.data.format import load_index
from must.method.model.hub import check_model_name
from must.method.train.recipe import AUTO, RESUME_SAFE_FIELDS, find_published, run_key

logger = logging.getLogger(__name__)

DEFAULT_MODEL, DEFAULT_WEIGHTS = "ViT-B-16", "datacomp_xl_s13b_b90k"  # docs/models.md says why
SET_BY_ADAPT = ("shards", "features", "index_sha256", "classifier", "output", "split", "model", "pretrained", "device")
CHANGEABLE = RESUME_SAFE_FIELDS - {"preset", "alpha"}  # settings that may change from one call to the next
FEWEST_IMAGES = 11  # images: each is compared with the 10 that are most similar (must/method/model/memory.py)
SOURCE = "source"  # the folder in BESIDE for images that are in memory, and for a list of paths
TRAINED = "trained"  # in adapt.json: the settings that the model was trained with
LOG_FILE = "adapt.log"  # in WORK: all lines of the last call that made something
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
    rename: dict[str, str] | None = None,
    drop: bool = False,
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
        again: make everything anew, as if all inputs had changed.
        max_rejected: the largest share of images that cannot be decoded; above it nothing is adapted.
        rename: {class: its new name}, which its answers get, too; two may become one.
        drop: let go of answers whose class is gone; else a call that would is refused.
        settings: any other parameters of `must.train`: epochs, preset, workers, ...

    Raises:
        must.UserError: wrong input, in one line; `output` is as it was.
        must.TransientError: the same call may work later."""
    with resumable("adapt"):
        return adapt_work(
            images, classes, os.fspath(output), os.fspath(model), pretrained, os.fspath(test_images),
            train if isinstance(train, str) else "yes" if train else "no", device, again, max_rejected,
            {name: value for name, value in settings.items() if value is not None}, rename or {}, drop,
        )  # fmt: skip


def command(config: AdaptConfig) -> Adapted:
    """The stage `must adapt`; prints the paths of what was written."""
    adapted = adapt_work(**config.to_dict())
    logger.info(f"model: {adapted.bundle}\nlabels: {adapted.labels}\nreport: {adapted.report}")
    return adapted


def adapt_work(
    images: Any, classes: Any, output: str, model: str, pretrained: str, test_images: str, train: str, device: str,
    again: bool, max_rejected: float, settings: dict[str, Any], rename: dict[str, str], drop: bool,
    verbose: bool = False,
) -> Adapted:  # fmt: skip
    """The parts of WORK in order, those that are not up to date."""
    classes = rename_classes(classes, rename) if rename else classes
    words = {
        "images": images, "classes": classes, "model": model, "pretrained": pretrained, "test_images": test_images,
        "train": train, "device": device, "settings": settings, "max_rejected": max_rejected,
    }  # fmt: skip
    pretrained = pretrained or (DEFAULT_WEIGHTS if model == DEFAULT_MODEL else "")
    wanted, work = check_words(output, words | {"pretrained": pretrained}), Path(output).absolute()
    named = read_classes(classes, test_images or images)
    with open_work(work, again) as scratch, spoken_by("must.api", verbose) as lines:
        source = to_source(images, scratch)
        found = fingerprint_source(source, "--images", output, FEWEST_IMAGES)
        labelled = fingerprint_source(ImageSource(test_images), "--test-images", output, 1)
        clip = identify_model(model), identify_model(pretrained)
        keys = {SHARDS: found.key, TEST: labelled.key, MODELS: hash_inputs(named.key, *clip)}
        state = WorkState(work, keys, again)
        loaders = {"workers": wanted.workers if isinstance(wanted.workers, int) else None}
        before = state.record(**{WORDS: record_words(words)})
        try:
            if not state.is_ready(MODELS):
                make_classifier(state, named, {"model": model, "pretrained": pretrained, "device": device})
            if test_images:
                pack_test(state, test_images, named, {"max_rejected": max_rejected} | loaders)
            if not state.is_ready(SHARDS):
                pack_images(state, source.source, found.files, {"max_rejected": max_rejected} | loaders)
            state.check_answers(named.list_names, rename, drop)
            fits, training = state.fits(), should_train(state, train, settings, wanted, device)
            require(
                fits or training,
                f"output {output}: its model is trained, of other classes or of another CLIP, and this call trains "
                "none; --train yes makes its successor, another --output leaves it as it is",
            )
        except UserError:
            restore(state, before)
            raise
        state.rename_answers(rename)
        state.take()
        common = loaders | {"device": device, "shards": work / SHARDS, "features": work / FEATURES}
        if fits:
            make_model(state, again, common)
        if training:
            if fits:
                logger.info("labels and model are there; now training, then the same with the trained model")
            train_model(state, settings, common)
            make_model(state, again, common)
        logger.info("\n".join(state.describe()) if state.changed else "nothing has changed")
        for name in state.list_old_exports():
            stage = "gate" if name == PARTS["decision"].path else "export"
            to = " --to open_clip" if name == PARTS["open_clip"].path else ""
            logger.info(f"{name}: of the model before; must {stage} {shlex.quote(output)}{to} makes it again")
        state.finish()
        if state.changed:
            write_lines(lines, work / LOG_FILE)
    return Adapted(work)


def check_words(output: str, words: dict[str, Any]) -> TrainConfig:
    """Raises UserError: a word of the call is wrong, as far as that shows without reading the images."""
    folder = Path(output).absolute()
    require("://" not in output, f"output {output}: must be a folder on this machine")
    require(not folder.is_file(), f"output {output}: is a file; give a folder")
    require_apart(folder, "output")
    require(words["train"] in ("auto", "yes", "no"), f"train {words['train']}: expected auto, yes or no")
    wanted = parse_settings(words["settings"])
    check_device(words["device"])
    places = {"--images": words["images"], "--test-images": words["test_images"], "--model": words["model"]}
    check_places(folder, places)
    check_model_name(words["model"], words["pretrained"])
    return wanted


def make_classifier(state: WorkState, named: ClassNames, model: dict[str, Any]) -> None:
    file, place = named.file, state.beside
    for name in (CLASSIFIER_FILE, MODELS):  # of other classes
        remove(place / name)
    if not file:
        file = str(place / "classes.yaml")
        storage.write_bytes(file, named.content)
    run("classifier", classes=file, **model, output=place / CLASSIFIER_FILE)
    state.finish_part(MODELS)


def shard(flag: str, **values: Any) -> None:
    """Runs must shard, whose errors about the source name the flag that it was given with."""
    try:
        run("shard", **values)
    except UserError as error:
        error.args = (re.sub("^--source", flag, str(error)),)
        raise


def pack_test(state: WorkState, test_images: str, named: ClassNames, pack: dict[str, Any]) -> None:
    if not state.is_ready(TEST):
        if (state.beside / TEST / INDEX_FILE).exists():  # of other images
            remove(state.beside / TEST)
        is_table = test_images.lower().endswith((".csv", ".tsv", ".jsonl")) and Path(test_images).is_file()
        labels = {"labels": "csv" if is_table else "folder", "split": {"test": 1.0}}
        shard("--test-images", source=test_images, **labels, **pack, output=state.beside / TEST)
        state.finish_part(TEST)
    check_labels(test_images, state, named)


def pack_images(state: WorkState, source: str, files: np.ndarray, pack: dict[str, Any]) -> None:
    """Makes the shards beside, or appends to a copy of those that there are. `files`: of the source, see inputs.py."""
    new = state.beside / SHARDS
    if (new / INDEX_FILE).exists():  # of other images
        remove(new)
    if not (state.adds_only(source, files) and append(state, source, len(files), pack)):
        shard("--images", source=source, output=new, **pack)
    storage.write_bytes(str(new / FILES), files.astype("<u8").tobytes())
    state.finish_part(SHARDS)
    logger.info(describe_images(new))
    state.compare_images()


def append(state: WorkState, source: str, files: int, pack: dict[str, Any]) -> bool:
    """Appends the source's new images to the shards that there are, beside. False: one of them is a copy of an old
    image, which would get no row of its own, or too many are damaged to tell without the others. `files`: that the
    source has."""
    new, whole = state.beside / SHARDS, False
    remove(new)
    ours = shutil.ignore_patterns(FILES, MADE_FROM)
    shutil.copytree(state.work / SHARDS, new, copy_function=link_or_copy, ignore=ours)
    with suppress(UserError):
        run("shard", source=source, output=new, append=True, **pack)
        index = load_index(str(new))
        whole = not index.dropped and sum(shard.samples for shard in index.shards) + index.rejected == files
    if not whole:
        remove(new)
    return whole


def make_model(state: WorkState, again: bool, common: dict[str, Any]) -> None:
    """Gives the model its memory, the images their labels, and writes the report, where they are not of this model."""
    classifier, model, labels = (state.work / name for name in (CLASSIFIER_FILE, BUNDLE, LABELS))
    if again or not state.labels_are_current():
        state.changed = True
        logger.info("one pass over the pictures ...")
        paths = {"classifier": classifier, "model": model, "output": labels, "answers": state.answers() or None}
        run("refine", **common | paths | state.promised())
    if again or not state.report_is_current():
        state.changed = True
        measured = {"shards": state.work / TEST, "split": "test"} if state.keys[TEST] else {"split": "train"}
        paths = {"model": model, "baseline": classifier, "refined": labels, "output": state.work / REPORT}
        run("evaluate", **common | paths | measured)


def should_train(state: WorkState, train: str, settings: dict[str, Any], wanted: TrainConfig, device: str) -> bool:
    """Whether training is wanted and not done yet."""
    if train == "no":
        return False
    origin = state.provenance()
    compared = {"preset", *settings} - CHANGEABLE
    done = state.fits() and origin and all(origin.config.get(name) == getattr(wanted, name) for name in compared)
    trained_with = read_value(state.work / RECORD_FILE, TRAINED)
    if done and trained_with in (None, list_settings(settings)):
        same = origin.index_sha256 == load_index(str(state.find_folder(SHARDS) / SHARDS)).sha256
        if not same and train == "auto":
            logger.info("the model was trained on other images, and has a memory of these; --train yes trains it again")
        if same or train == "auto":
            return False
    return train == "yes" or (device.startswith(("auto", "cuda")) and has_gpu())


def list_settings(settings: dict[str, Any]) -> dict[str, Any]:
    """Those that determine the weights."""
    kept = {name: value for name, value in settings.items() if name not in CHANGEABLE}
    return json.loads(json.dumps(kept, default=str))


def train_model(state: WorkState, settings: dict[str, Any], common: dict[str, Any]) -> None:
    """Replaces the model by a trained one, in one step at the end. Its checkpoints are deleted then."""
    classifier, index = state.work / CLASSIFIER_FILE, load_index(str(state.work / SHARDS))
    key, checkpoints = run_key(index.sha256, str(classifier), list_settings(settings)), state.work / CHECKPOINTS
    outdate_report(str(state.work / BUNDLE))
    run(
        "train", **{"checkpoints": checkpoints / key} | settings, classifier=classifier, output=state.work / BUNDLE,
        **{name: common[name] for name in ("shards", "features", "device")},
    )  # fmt: skip
    state.record(**{TRAINED: list_settings(settings)})
    remove(checkpoints)
    state.changed = True


def restore(state: WorkState, record: bytes) -> None:
    """Removes what a call has made whose input is refused."""
    remove(state.beside)
    file = state.work / RECORD_FILE
    storage.write_bytes(str(file), record) if record else file.unlink(missing_ok=True)


def has_gpu() -> bool:
    """Whether torch finds a CUDA GPU. Where there is no driver, torch is not imported, which takes seconds."""
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    load_torch("adapt")
    import torch

    return torch.cuda.is_available()


def check_labels(test_images: str, state: WorkState, named: ClassNames) -> None:
    """Raises UserError: no labelled image has a label, or one is not a class."""
    labels = load_index(str(state.find_folder(TEST) / TEST)).labels
    require(
        bool(labels),
        f"--test-images {test_images}: none of the images has a label; give a folder that holds a folder of each class",
    )
    unknown = [label for label in labels if label not in set(named.list_names())]
    names = ", ".join(unknown[:3]) + (", ..." if len(unknown) > 3 else "")
    require(
        not unknown,
        f"--test-images {test_images}: {pluralize(len(unknown), 'label')} not among the classes ({names}); rename "
        "them, or add the class",
    )


@contextmanager
def open_work(work: Path, again: bool) -> Iterator[Path]:
    """Locks WORK; yields a folder for images that are in memory. WORK is removed at the end if it is empty. What was
    made beside stays after an interruption, for the next call, and goes if an input is refused."""
    scratch = work / BESIDE / SOURCE
    try:
        with locked(str(work), ADAPT_LOCK):
            remove(work / BESIDE if again else scratch)
            try:
                scratch.mkdir(parents=True)
                with replaced(f"/{re.escape(BESIDE)}(?=/)", ""):  # as at the end
                    yield scratch
            finally:
                remove(scratch)
                with suppress(OSError):
                    (work / BESIDE).rmdir()
    finally:
        with suppress(OSError):
            work.rmdir()


def parse_settings(settings: dict[str, Any]) -> TrainConfig:
    """Raises ValueError: a setting that `must train` would refuse, as far as can be checked before there are shards."""
    for name in SET_BY_ADAPT:
        require(name not in settings, f"{name}: is set by must.adapt itself; take it out")
    for name in settings.keys() - {field.name for field in list_parameters(TrainConfig)}:
        near = close_to(name, [field.name for field in list_parameters(AdaptConfig)])
        require(not near, f"{name}: unknown; did you mean {near[0] if near else ''}?")
    check_names(TrainConfig, settings, "settings")
    wanted = TrainConfig(shards="-", classifier="-", output="-", **{"preset": AUTO} | settings)
    if wanted.preset not in ("", AUTO):
        find_published(wanted.preset, "ViT-B-16")
    if isinstance(wanted.workers, int):
        check_processes(wanted.workers, "--workers")
    return wanted
