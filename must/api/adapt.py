"""The stage `must adapt`: images and class names in; a model, labels of the images and a report out, below one folder,
WORK.

    images, classes -> classifier.safetensors + shards/ -> model/ + labels/ (one pass, no training) -> report/
                    -> training, with a CUDA GPU or if asked for -> model/ + labels/ -> report/

A call with the same words goes on where it was stopped, and does what is new since: other photos, classes or settings
(must/api/work_state.py). What the user has to correct changes nothing."""

import ctypes
import json
import logging
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from must.api.inputs import (
    FOLDER_NAMES,
    ClassNames,
    ImageSource,
    describe_folders,
    fingerprint_source,
    identify_model,
    read_classes,
    record_words,
    rename_classes,
    to_source,
)
from must.api.model import Adapted
from must.api.run import require_apart, run
from must.api.work_state import FILES, WorkState, check_places, describe_images, hash_inputs, link_or_copy, remove
from must.base import storage
from must.base.console import replaced, spoken_by
from must.base.errors import UserError
from must.base.lock import Kind, locked
from must.base.parameters import check_names, list_parameters, require
from must.base.processes import check_processes
from must.base.program import load_torch
from must.base.text import close_to, compose, pluralize
from must.config import AdaptConfig, TrainConfig
from must.config.work import BESIDE, INDEX_FILE, MADE_FROM, RECORD_FILE, WORDS, outdate_report, read_value
from must.data.format import load_index
from must.model.hub import check_model_name
from must.training.recipe import AUTO, RESUME_SAFE_FIELDS, find_published, run_key

logger = logging.getLogger(__name__)

DEFAULT_MODEL, DEFAULT_WEIGHTS = "ViT-B-16", "datacomp_xl_s13b_b90k"  # docs/models.md says why
SET_BY_ADAPT = ("shards", "features", "index_sha256", "classifier", "output", "split", "model", "pretrained", "device")
CHANGEABLE = RESUME_SAFE_FIELDS - {"preset", "alpha"}  # settings that may change from one call to the next
FEWEST_IMAGES = 11  # images: each is compared with the 10 that are most similar (must/model/memory.py)
SOURCE = "source"  # the folder in BESIDE for images that are in memory, and for a list of paths
TRAINED = "trained"  # in adapt.json: the settings that the model was trained with
OF_OTHERS = (
    "its model is trained, of other classes or of another CLIP, and this call trains none; --train yes makes its "
    "successor, another --output leaves it as it is"
)
ADAPT_LOCK = Kind("must adapt", "--output", ".adapt.lock")


def adapt(config: AdaptConfig) -> Adapted:
    """Makes the parts of WORK that are not up to date, in order; PARTS (must/config/work.py) says what each is made
    from."""
    work, wanted = Path(config.output).absolute(), parse_settings(config.settings)
    check_places(config)
    require_apart(work, "output")
    clip = check_clip(config)
    config, named = name_classes(config)
    loaders = {"workers": wanted.workers if isinstance(wanted.workers, int) else None}
    pack = loaders | {"max_rejected": config.max_rejected}
    with open_work(work, config.again) as scratch, spoken_by("must.api", config.verbose) as lines:
        source = to_source(config.images, scratch)
        found = fingerprint_source(source, "--images", config.output, FEWEST_IMAGES)
        labelled = fingerprint_source(ImageSource(config.test_images), "--test-images", config.output, 1)
        classes = hash_inputs(named.key, *map(identify_model, clip.values()))
        keys = {"images": found.key, "test_images": labelled.key, "classes": classes}
        state = WorkState(work, keys, config.again)
        try:
            if not state.find("models"):
                make_classifier(state, config, named, clip)
            if config.test_images:
                pack_test(state, config.test_images, named.list_names, pack)
            if not state.find("shards"):
                pack_images(state, source.source, found.files, pack)
            state.check_answers(named.list_names, config.rename, config.drop)
            fits, training = state.fits(), should_train(state, config)
            require(fits or training, f"output {config.output}: {OF_OTHERS}")
        except UserError:
            remove(state.beside)
            raise
        state.take()
        state.rename_answers(config.rename)
        state.record(**{WORDS: record_words(vars(config))})
        places = {name: state.place(name) for name in ("shards", "features")}
        common = loaders | places | {"device": config.device}
        if fits:
            make_model(state, config.again, common)
        if fits and training:
            logger.info("labels and model are there; now training, then the same with the trained model")
        if training:
            train_model(state, config.settings, common)
            make_model(state, config.again, common)
        state.finish(config.output, lines)
    adapted = Adapted(work)
    logger.info(f"labels: {adapted.labels}\nreport: {adapted.report}\nmodel: {adapted.bundle}")
    return adapted


def check_clip(config: AdaptConfig) -> dict[str, str]:
    """The CLIP that is adapted, as parameters of must classifier. Raises UserError: there is none of this name."""
    pretrained = config.pretrained or (DEFAULT_WEIGHTS if config.model == DEFAULT_MODEL else "")
    check_model_name(config.model, pretrained)
    return {"model": config.model, "pretrained": pretrained}


def name_classes(config: AdaptConfig) -> tuple[AdaptConfig, ClassNames]:
    """The call with the names that classes have after --rename; and the classes."""
    named_by = config.test_images or config.images
    if config.rename:
        rename = {compose(old): compose(new) for old, new in config.rename.items()}
        config = replace(config, rename=rename, classes=rename_classes(config.classes, rename, named_by))
    return config, read_classes(config.classes, named_by, config.output)


def make_classifier(state: WorkState, config: AdaptConfig, named: ClassNames, clip: dict[str, str]) -> None:
    if isinstance(config.classes, str) and config.classes == FOLDER_NAMES:
        logger.info(describe_folders(named.names))
    output, file = state.place("classifier", beside=True), named.file
    for path in (output, state.place("models", beside=True)):  # of other classes
        remove(path)
    if not file:
        file = str(state.beside / "classes.yaml")
        storage.write_bytes(file, named.content)
    run("classifier", classes=file, **clip, device=config.device, output=output)
    state.finish_part("models")


def shard(flag: str, **values: Any) -> None:
    """Runs must shard, whose errors about the source name the flag that it was given with."""
    try:
        run("shard", **values)
    except UserError as error:
        error.args = (re.sub("^--source", flag, str(error)),)
        raise


def pack_test(state: WorkState, images: str, list_names: Callable[[], tuple[str, ...]], pack: dict[str, Any]) -> None:
    """Raises UserError: no labelled image has a label, or one is not a class."""
    if not state.find("test"):
        new = state.place("test", beside=True)
        remove(new)  # of other images
        is_table = images.lower().endswith((".csv", ".tsv", ".jsonl")) and Path(images).is_file()
        labels = {"labels": "csv" if is_table else "folder", "split": {"test": 1.0}}
        shard("--test-images", source=images, **labels, **pack, output=new)
        state.finish_part("test")
    known = load_index(str(state.find("test"))).labels
    require(
        bool(known),
        f"--test-images {images}: none of the images has a label; give a folder that holds a folder of each class",
    )
    unknown = [label for label in known if label not in set(list_names())]
    names = ", ".join(unknown[:3]) + (", ..." if len(unknown) > 3 else "")
    require(
        not unknown,
        f"--test-images {images}: {pluralize(len(unknown), 'label')} not among the classes ({names}); rename them, or "
        "add the class",
    )


def pack_images(state: WorkState, source: str, files: np.ndarray, pack: dict[str, Any]) -> None:
    """Makes the shards beside, or appends to a copy of those that there are. `files`: of the source, see inputs.py."""
    new = state.place("shards", beside=True)
    if (new / INDEX_FILE).exists():  # of other images
        remove(new)
    if not (state.adds_only(source, files) and append(state, source, len(files), pack)):
        shard("--images", source=source, output=new, **pack)
    storage.write_bytes(str(new / FILES), files.astype("<u8").tobytes())
    state.finish_part("shards")
    logger.info(describe_images(new))
    state.compare_images()


def append(state: WorkState, source: str, files: int, pack: dict[str, Any]) -> bool:
    """Appends the source's new images to the shards that there are, beside. False: one of them is a copy of an old
    image, which would get no row of its own, or too many are damaged to tell without the others. `files`: that the
    source has."""
    new, whole = state.place("shards", beside=True), False
    remove(new)
    ours = shutil.ignore_patterns(FILES, MADE_FROM)
    shutil.copytree(state.place("shards"), new, copy_function=link_or_copy, ignore=ours)
    with suppress(UserError):
        run("shard", source=source, output=new, append=True, **pack)
        index = load_index(str(new))
        whole = not index.dropped and sum(shard.samples for shard in index.shards) + index.rejected == files
    if not whole:
        remove(new)
    return whole


def make_model(state: WorkState, again: bool, common: dict[str, Any]) -> None:
    """Gives the model its memory, the images their labels, and writes the report, where they are not of this model."""
    classifier, model, labels, report = map(state.place, ("classifier", "bundle", "labels", "report"))
    if again or not state.is_current("labels"):
        state.changed = True
        logger.info("one pass over the pictures ...")
        paths = {"classifier": classifier, "model": model, "output": labels, "answers": state.find_answers() or None}
        refined = run("refine", **common | paths | state.find_promise())
        forget_towers(state.place("features"), refined["towers"])
    if again or not state.is_current("report"):
        state.changed = True
        labelled = {"shards": state.place("test"), "split": "test"} if state.keys["test_images"] else {"split": "train"}
        paths = {"model": model, "baseline": classifier, "refined": labels, "output": report}
        run("evaluate", **common | paths | labelled)


def forget_towers(features: Path, used: list[str]) -> None:
    """Deletes the features of image towers that neither this CLIP nor this model has: of a model that was replaced."""
    for folder in features.iterdir():
        if folder.name not in used:
            remove(folder)


def should_train(state: WorkState, config: AdaptConfig) -> bool:
    """Whether training is wanted and not done yet."""
    if config.train == "no":
        return False
    origin, trained_with = state.provenance(), read_value(state.work / RECORD_FILE, TRAINED)
    if origin and state.fits() and trained_with in (None, list_settings(config.settings)):
        same = origin.index_sha256 == load_index(str(state.find("shards"))).sha256
        if not same and config.train == "auto":
            logger.info("the model was trained on other images, and has a memory of these; --train yes trains it again")
        if same or config.train == "auto":
            return False
    return config.train == "yes" or (config.device.startswith(("auto", "cuda")) and has_gpu())


def list_settings(settings: dict[str, Any]) -> dict[str, Any]:
    """Those that determine the weights."""
    kept = {name: value for name, value in settings.items() if name not in CHANGEABLE}
    return json.loads(json.dumps(kept, default=str))


def train_model(state: WorkState, settings: dict[str, Any], common: dict[str, Any]) -> None:
    """Replaces the model by a trained one, in one step at the end. Its checkpoints are deleted then."""
    classifier, model, checkpoints = map(state.place, ("classifier", "bundle", "checkpoints"))
    key = run_key(state.compute_hash("shards"), str(classifier), list_settings(settings))
    outdate_report(str(model))
    run("train", **{"checkpoints": checkpoints / key} | common | settings | {"classifier": classifier, "output": model})
    state.record(**{TRAINED: list_settings(settings)})
    remove(checkpoints)
    state.changed = True


def has_gpu() -> bool:
    """Whether torch finds a CUDA GPU. Where there is no driver, torch is not imported, which takes seconds."""
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    load_torch("adapt")
    import torch

    return torch.cuda.is_available()


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
