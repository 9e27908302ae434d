"""The stage `must labels`: labels of one tool in the files of another."""

import io
import logging
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from must.base import storage
from must.base.parameters import require
from must.base.text import NONE_OF_THESE, cell, csv_of
from must.config.labels import LabelsConfig
from must.data.sources.table_files import need_pyarrow
from must.deploy.labels import formats
from must.deploy.labels.formats import Label, classes_of, read_labels
from must.deploy.labels.sort import file_of
from must.method.model.classifier import load_class_set

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Exchanged:
    """`images` that are in the file, of which `labelled` have a label or are said to be of no class."""

    output: str
    images: int
    labelled: int


def exchange(config: LabelsConfig) -> Exchanged:
    """Writes OUTPUT in the format that is asked for; prints how to take it there.
    Raises ValueError: no labels, a format that cannot hold them, or images that are not below --root."""
    labels = [replace(one, image=located(one.image, config.root)) for one in read_labels(config.labels)]
    classes = classes_of(labels, load_class_set(config.classes).names if config.classes else ())
    output, hint = config.output, ""
    if config.to == "label-studio":
        beside = f"{output.removesuffix('.json')}.xml"
        storage.write_bytes(beside, formats.label_studio_config(classes))
        storage.write_bytes(output, formats.label_studio(labels, config.root))
        hint = (
            f"in Label Studio: a project with the labelling interface in {beside}, {output} imported; for "
            "files of this machine it is started with LABEL_STUDIO_LOCAL_FILES_SERVING_ENABLED=true and "
            f"LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT={Path(config.root or '/').absolute()}"
        )
    elif config.to == "fiftyone":
        said, paths = formats.fiftyone(labels, classes)
        storage.write_bytes(storage.join(output, "data.json"), paths)
        storage.write_bytes(storage.join(output, "labels.json"), said)
        hint = (
            f"fiftyone.Dataset.from_dir(data_path='{storage.join(output, 'data.json')}', labels_path="
            f"'{storage.join(output, 'labels.json')}', dataset_type=fiftyone.types.FiftyOneImageClassificationDataset)"
        )
    elif config.to == "cleanlab":
        write_cleanlab(config, labels)
    elif config.to == "answers":
        require(output.lower().endswith(".jsonl"), f"--output {output}: answers are read from files called .jsonl")
        labels = [one for one in labels if one.probability is None]
        require(bool(labels), f"--labels {config.labels}: predictions only; give a file with people's labels")
        storage.write_bytes(output, formats.answers(labels, image_sha256))
    else:
        rows = [(cell(one.image), cell(one.label or NONE_OF_THESE)) for one in labels if not one.unsure]
        storage.write_bytes(output, csv_of([("image", "label"), *rows]))
    labelled = sum(not one.unsure for one in labels)
    if any(one.picked for one in labels) and config.to != "answers":
        logger.warning(
            "warning: must review selected these images (not recorded in the new file): accuracy on them is biased"
        )
    logger.info(f"{len(labels)} images, {labelled} of them labelled -> {output}")
    if hint:
        logger.info(hint)
    return Exchanged(output, len(labels), labelled)


def located(image: str, root: str) -> str:
    """The image below `root`, where its name alone is no file."""
    path = file_of(image, root)
    return str(path) if path else image


def image_sha256(image: str) -> str:
    """Of the image's file; '' where it is not on this machine."""
    path = file_of(image, "")
    return storage.sha256_of(path) if path else ""


def write_cleanlab(config: LabelsConfig, labels: list[Label]) -> None:
    def given(one: Label) -> str | None:
        return PurePosixPath(one.image).parent.name if config.check == "folder" else one.label

    found = formats.cleanlab(labels, given, f"--labels {config.labels}")
    if not config.output.lower().endswith(".parquet"):
        storage.write_bytes(config.output, formats.dumped(found))
        return
    need_pyarrow(f"--output {config.output} (a name that ends in .json needs none)")
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.table({"image": found["images"], "label": found["labels"], "pred_probs": found["pred_probs"]})
    table = table.replace_schema_metadata({"classes": formats.dumped(found["classes"]).strip()})
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    storage.write_bytes(config.output, buffer.getvalue())
