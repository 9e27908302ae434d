"""What a run of the pipeline refuses before its first GPU: wrong parameters, inputs, and data that do not fit.

`check_run` looks at names, values, and which settings belong to which gate. It reads no files, needs no torch, and is
called when a run is started and by its first stage. That stage, `check_inputs`, also reads the inputs, tries the
outputs, and computes a hash of the inputs. `check_fit` is called by the stage champion, when the data and the model are
known: train, evaluate and export would refuse the same, after hours of a GPU."""

import hashlib
import json
import math
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import fields
from itertools import islice
from typing import Any

from must import __version__
from must.answers.answers_file import read_answers
from must.api.run import check_device
from must.base import storage
from must.base.errors import UserError
from must.base.parameters import check_settings_of, load, normalize_names, require, require_settings
from must.base.program import format_error
from must.base.text import abbreviate, pluralize
from must.config import ExportConfig, GateConfig, PredictConfig, ShardConfig, TrainConfig
from must.config.run import SourceParameters
from must.config.train import check_batch
from must.config.work import ANSWERS_FILE, INDEX_FILE, Workspace
from must.data.format import Index
from must.data.reader import open_reader
from must.data.shards.listing import open_source
from must.data.sources.files import Folder, ListingReport, Manifest, describe_no_images
from must.data.sources.tables import Tables
from must.model.classifier import load_text_classifier, read_header
from must.model.hub import HUB, OPEN_CLIP_WEIGHTS, check_model_name, is_folder, parse_model_name
from must.prediction.onnx_model import LARGEST_MODEL
from must.registry.promote import Registry
from must.training.recipe import AUTO, choose_batch, find_published, resolve

DRAWN = frozenset({"mask_patch_size", "mask_ratio", "randaugment", "randaugment_ops"})  # must fit the image tower
NAMED = 5  # labels in a message


def check_fit(index: Index, shards: str, split: str, classifier: str, values: dict[str, Any], processes: int) -> None:
    """Args:
    split: on which the run evaluates.
    classifier: its file, which names the model.
    values: the parameters of `must train`, with its preset.
    processes: of the training, on all nodes together."""
    check_settings(index, classifier, values, processes)
    check_labels(index, shards, split, read_header(classifier).classes)
    if folder := read_header(classifier).model_folder:
        size = count_bytes(storage.join(folder, OPEN_CLIP_WEIGHTS))
        text = f"the model's image tower has {size / 1e9:.1f} GB, one ONNX file can hold 2; take a smaller model"
        require(size <= LARGEST_MODEL, text)


def check_settings(index: Index, classifier: str, values: dict[str, Any], processes: int) -> None:
    """The batch, and masks and augmentation where the settings name them: `auto` chooses what fits, without torch."""
    images, header = sum(shard.samples for shard in index.list_shards(TRAIN)), read_header(classifier)
    given = values | {"preset": values.get("preset") or AUTO, "shards": "-", "classifier": classifier, "output": "-"}
    config = load(TrainConfig, given)
    if config.preset == AUTO and not config.passed & DRAWN:
        batch = config.batch_size if config.is_passed("batch_size") else choose_batch(images, len(header.classes))
    else:
        from must.data.augment import AugmentSampler  # imports torch
        from must.model.backbone import find_tower_shape

        config = resolve(config, index, load_text_classifier(classifier)).config
        _, size, patch = find_tower_shape(*header.find_model())
        AugmentSampler(config, size, patch)
        batch = config.batch_size
    check_batch(images, batch, processes, config.accumulate)


def check_labels(index: Index, shards: str, split: str, classes: tuple[str, ...]) -> None:
    """Labels of images on which the run evaluates. The index has those of all splits together, so the images are only
    read where some of them are no class."""
    if set(index.labels) <= set(classes) or not index.splits[split]["labelled"]:
        return
    reader, unknown = open_reader(shards, split, sha256=index.sha256), Counter[str]()
    for number in range(len(reader)):
        label = reader.description(number).get("label")
        if label is not None and label not in classes:
            unknown[str(label)] += 1
    names = ", ".join(
        f"{abbreviate(label)} ({pluralize(count, 'image')})" for label, count in unknown.most_common(NAMED)
    )
    more = f" and {len(unknown) - NAMED} more" if len(unknown) > NAMED else ""
    require(
        not unknown,
        f"labels of the split {split} that are no class: {names}{more}; rename the labels or the classes, or set "
        "labels: none",
    )


def count_bytes(file: str) -> int:
    """Of the image tower in float32, by the header of an open_clip model's safetensors file."""
    size = int.from_bytes(storage.read_bytes(file, 0, 8), "little")
    content: dict[str, Any] = json.loads(storage.read_bytes(file, 8, size))
    return sum(4 * math.prod(tensor["shape"]) for name, tensor in content.items() if name.startswith("visual."))


MOST_COUNTED = 100_000  # images: a bucket takes a request for each thousand
PROBE_FILE = ".must-may-write"  # is written and deleted, to test the permissions


def check_inputs(values: dict[str, Any], work_uri: str = "") -> tuple[str, str]:
    """Returns what was found, in words, and a sha256 that changes with the content of the class file and with the files
    of a local or remote model. Refuses what a later stage could not read or write. `values`: all parameters of the run,
    by the pipeline's names; `work_uri`: if given, the folders to which later stages write are tested."""
    from must.model.classifier import BUNDLED_SET, load_class_set, require_shares

    training = check_run(values)
    if work_uri:
        check_writable("work_uri", work_uri)
        registry = Workspace(work_uri).registry(values.get("registry_uri", ""))
        check_writable("registry_uri", storage.join(registry, values.get("model_name", "model")))
    names = ("classes", "model", "pretrained", "answers")
    classes, model, pretrained, answers = (values.get(name) or "" for name in names)
    given = training.class_prior == "given"
    found = f"classes of {classes}"
    if classes != BUNDLED_SET or answers or given:
        class_set = load_class_set(classes)
        found = f"{len(class_set.names):,} classes"
        if given:
            require_shares(class_set.shares, classes)
        if answers:
            check_answers(answers, list(class_set.names))
    check_model(model, pretrained)
    images = check_sources(values, Workspace(work_uri).place("shards"))
    return ", ".join([*images[:1], found, *images[1:]]), hash_inputs(classes, model, pretrained)


def check_writable(name: str, uri: str) -> None:
    if not uri:
        return
    file = storage.join(uri, PROBE_FILE)
    try:
        storage.write_bytes(file, b"")
        storage.read_bytes(file)
    except storage.TransientError:
        raise
    except (ValueError, OSError) as error:
        raise UserError(f"{name} {uri}: cannot be read and written: {format_error(error)}") from None
    with suppress(ValueError, OSError):  # the permission to write may not include deleting
        storage.delete(file)


def check_sources(values: dict[str, Any], shards: str) -> list[str]:
    """Says what images there are. Refuses folders without an image, and a split to evaluate on that the images cannot
    have. Archives, tables and lists of files are only looked for: to read them is the work of the stage shard.

    With `append`, the images may be in the shards already, and in their source no more."""
    config = check_sharding(values)
    appends = config.append and storage.exists(storage.join(shards, INDEX_FILE))
    splits, own_splits = {name for name, share in config.split.items() if share}, appends
    found = list[str]()
    for name in ("source", "test_source"):
        if uri := values.get(name):
            source = open_source(uri, config.labels, name, shards, config.image_column, config.label_column)
            own_splits |= isinstance(source, Manifest | Tables)
            splits |= {"test"} if name == "test_source" else set()
            noun = "image" if name == "source" else "test image"
            if not isinstance(source, Folder):
                found.append(f"{noun}s of {uri}")
                continue
            problems = ListingReport(lambda *_: None)
            count = sum(1 for _ in islice(source.items(problems), MOST_COUNTED))
            require(count > 0 or appends, f"{name} {uri}: {describe_no_images(problems.skipped)}")
            found.append(f"{'at least ' if count == MOST_COUNTED else ''}{pluralize(count, noun)}")
    split = values.get("evaluate_split") or ""
    known = ", ".join(sorted(splits))
    require(
        not split or split in splits or bool(own_splits) or not values.get("source"),
        f"evaluate_split {split}: there will be no such split; there are: {known}",
    )
    return found


def check_answers(uri: str, classes: list[str]) -> None:
    require(uri.endswith(".jsonl"), f"answers {uri}: expected {ANSWERS_FILE} of `must review`")
    require(storage.exists(uri), f"answers {uri}: no such file")
    require(bool(read_answers(uri, classes)), f"answers {uri}: there are no answers in it with a class of this run")


def check_model(model: str, pretrained: str) -> None:
    """Reads no weights; imports no torch for a folder."""
    check_model_name(model, pretrained)
    if pretrained and storage.is_remote(pretrained):
        require(storage.exists(pretrained), f"--pretrained {pretrained}: no such file")
    elif not (storage.is_remote(model) or is_folder(model) or model.startswith(HUB)):
        from must.model.backbone import check_pretrained

        check_pretrained(*parse_model_name(model, pretrained))


def hash_inputs(classes: str, model: str, pretrained: str) -> str:
    parts: list[Any] = [__version__, classes, model, pretrained]
    if "/" in classes or classes.endswith((".yaml", ".yml", ".json", ".txt")):
        parts.append(hashlib.sha256(storage.read_bytes(classes)).hexdigest())
    parts += [read_versions(uri) for uri in (model, pretrained)]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def read_versions(uri: str) -> list[Any]:
    """Sizes and generations of a file, or of the files in a folder; empty for the name of a model."""
    if not uri:
        return []
    if storage.find_generation(uri) is not None and (storage.is_remote(uri) or storage.local(uri).is_file()):
        return [storage.size(uri), storage.find_generation(uri)]
    entries = sorted(storage.list_existing(uri))
    return [[entry.name, entry.size, storage.find_generation(storage.join(uri, entry.name))] for entry in entries]


OF_SHARDING = [one.name for one in fields(SourceParameters) if one.name != "shard_settings"]
OF_LABELLING = ("images", "output", "model", "part", "known", "relabel", "classes")
OF_DATA = ("shards", "index_sha256", "classifier", "split", "model", "pretrained")
OF_TRAINING = (*OF_DATA, "preset", "output", "checkpoints")
TRAIN = "train"  # the split that the pipeline trains on and exports with


def check_run(values: Mapping[str, Any]) -> TrainConfig:
    """Refuses what a stage would refuse of the pipeline's parameters. Missing parameters have their defaults. Returns
    the training's."""
    for name in ("source", "classes", "model", "work_uri"):
        require(values.get(name) != "", f"{name} is empty")
    name = values.get("model_name", "model")
    sharding = check_sharding(values)
    require(sharding.split.get(TRAIN, 0) > 0, f"split: the pipeline trains on the split {TRAIN}; give it a share")
    training = check_training(values)
    check_gate(values.get("gate", "auto"), values.get("gate_settings") or {})
    require(  # the shards that are there may have labels
        values.get("gate") != "labelled" or sharding.labels != "none" or sharding.append,
        "gate labelled: there will be no labels; give test_source and labels, or gate: auto",
    )
    check_settings_of("precision", ExportConfig, precision=values.get("precision", "fp32"))
    Registry("-", name)
    return training


def check_labelling(values: Mapping[str, Any]) -> None:
    """As `check_run`, of the pipeline `must-label`. Its pods write no Parquet: no image has pyarrow."""
    for name in ("source", "output", "work_uri"):
        require(values.get(name) != "", f"{name} is empty")
    output = values.get("output", "-.csv")
    require(not output.endswith(".parquet"), f"output {output}: must be a .csv or .jsonl file in a pipeline")
    given = {"images": [values.get("source", "-")], "output": output, "part": "1/2"}
    check_settings_of("settings", PredictConfig, **make_labelling_settings(values.get("settings") or {}, given))
    Registry("-", values.get("model_name", "model"))


def make_labelling_settings(settings: Mapping[str, Any], parameters: dict[str, Any]) -> dict[str, Any]:
    """The parameters of `must predict`: those of the pipeline, and the run's settings."""
    return parameters | require_settings(PredictConfig, settings, "settings", OF_LABELLING)


def check_sharding(values: Mapping[str, Any]) -> ShardConfig:
    """The parameters of the stage shard."""
    where = "shard_settings" if values.get("shard_settings") else ""
    return check_settings_of(where, ShardConfig, **make_sharding_settings(values))


def check_training(values: Mapping[str, Any]) -> TrainConfig:
    """The parameters of the stage train, without its preset's."""
    settings = require_settings(TrainConfig, values.get("settings") or {}, "settings", OF_TRAINING)
    name, epochs = values.get("preset") or "", values.get("epochs") or 0
    require(epochs >= 0, f"epochs {epochs}: passes over the images; 0 leaves it to settings and preset")
    if name not in ("", AUTO):
        find_published(name, values.get("model") or "")
    config = check_settings_of(
        "settings" if settings else "", TrainConfig, **make_training_settings(settings, name, epochs)
    )
    check_device(config.device)
    return config


def check_gate(gate: str, settings: Mapping[str, Any]) -> None:
    """Raises ValueError: wrong settings, or settings of another gate, which would have no effect."""
    check_settings_of("gate", GateConfig, gate=gate)
    values = require_settings(GateConfig, settings, "gate_settings", ("metrics", "model", "output", "gate"))
    for name in values:
        applies = gate in ("auto", "labelled")
        require(applies, f"gate_settings.{name}: belongs to the gates auto and labelled; this run has gate '{gate}'")
    check_settings_of("gate_settings", GateConfig, gate=gate, **values)


def make_training_settings(settings: Mapping[str, Any], preset: str, epochs: int) -> dict[str, Any]:
    """The parameters of `must train` in a run of the pipeline. `epochs`, unless it is 0, overrides the settings."""
    return {**normalize_names(settings), "preset": preset, **({"epochs": epochs} if epochs else {})}


def make_sharding_settings(values: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters of `must shard`, of a run's `SourceParameters`."""
    given = {name: values[name] for name in OF_SHARDING if values.get(name) is not None}
    settings, fixed = values.get("shard_settings") or {}, (*OF_SHARDING, "output", "part")
    return given | require_settings(ShardConfig, settings, "shard_settings", fixed)
