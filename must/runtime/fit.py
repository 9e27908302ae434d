"""What the stage champion refuses before the training: the data and the model are known then, and train, evaluate and
export would refuse the same, after hours of a GPU."""

import json
import math
from collections import Counter
from typing import Any

from must.base import storage
from must.base.parameters import load, require
from must.base.text import brief, counted
from must.config import TrainConfig
from must.data.format.index import Index
from must.data.loading.order import check_batch
from must.data.loading.reader import open_reader
from must.deploy.predict.session import LARGEST_MODEL
from must.method.model.classifier import load_text_classifier, read_header
from must.method.model.hub import OPEN_CLIP_WEIGHTS
from must.method.train.recipe import AUTO, choose_batch, resolve
from must.runtime.check import TRAIN

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
        from must.data.augment.draws import AugmentSampler  # imports torch
        from must.method.model.backbone import tower_shape

        config = resolve(config, index, load_text_classifier(classifier)).config
        _, size, patch = tower_shape(*header.find_model())
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
    names = ", ".join(f"{brief(label)} ({counted(count, 'image')})" for label, count in unknown.most_common(NAMED))
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
