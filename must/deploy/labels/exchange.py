"""The stage `must labels`: converts labels from the format of one tool to that of another."""

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
    """`images`: in the file; `labelled`: those of them with a class, or with "none of the classes"."""

    output: str
    images: int
    labelled: int


def exchange(config: LabelsConfig) -> Exchanged:
    """Writes OUTPUT in the requested format; prints how to import it.
    Raises ValueError: no labels, a format that cannot hold them, or images that are not below --root."""
    labels = [replace(label, image=path_of(label.image, config.root)) for label in read_labels(config.labels)]
    classes = classes_of(labels, load_class_set(config.classes).names if config.classes else ())
    output, hint = config.output, ""
    if config.to == "label-studio":
        interface = f"{output.removesuffix('.json')}.xml"
        storage.write_bytes(interface, formats.label_studio_config(classes))
        storage.write_bytes(output, formats.label_studio(labels, config.root))
        hint = (
            f"in Label Studio: a project with the labelling interface in {interface}, {output} imported; for "
            "files of this machine it is started with LABEL_STUDIO_LOCAL_FILES_SERVING_ENABLED=true and "
            f"LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT={Path(config.root or '/').absolute()}"
        )
    elif config.to == "fiftyone":
        labels_json, data_json = formats.fiftyone(labels, classes)
        storage.write_bytes(storage.join(output, "data.json"), data_json)
        storage.write_bytes(storage.join(output, "labels.json"), labels_json)
        hint = (
            f"fiftyone.Dataset.from_dir(data_path='{storage.join(output, 'data.json')}', labels_path="
            f"'{storage.join(output, 'labels.json')}', dataset_type=fiftyone.types.FiftyOneImageClassificationDataset)"
        )
    elif config.to == "cleanlab":
        write_cleanlab(config, labels)
    elif config.to == "answers":
        require(output.lower().endswith(".jsonl"), f"--output {output}: answers are read from files called .jsonl")
        labels = [label for label in labels if label.probability is None]
        require(bool(labels), f"--labels {config.labels}: predictions only; give a file with people's labels")
        storage.write_bytes(output, formats.answers(labels, image_sha256))
    else:
        rows = [(cell(label.image), cell(label.label or NONE_OF_THESE)) for label in labels if not label.unsure]
        storage.write_bytes(output, csv_of([("image", "label"), *rows]))
    labelled = sum(not label.unsure for label in labels)
    if any(label.picked for label in labels) and config.to != "answers":
        logger.warning(
            "warning: must review selected these images (not recorded in the new file): accuracy on them is biased"
        )
    logger.info(f"{len(labels)} images, {labelled} of them labelled -> {output}")
    if hint:
        logger.info(hint)
    return Exchanged(output, len(labels), labelled)


def path_of(image: str, root: str) -> str:
    """The local file of the image, also below `root`; the image's name where there is no such file."""
    path = file_of(image, root)
    return str(path) if path else image


def image_sha256(image: str) -> str:
    """The checksum of the image's file; '' where it is not on this machine."""
    path = file_of(image, "")
    return storage.sha256_of(path) if path else ""


def write_cleanlab(config: LabelsConfig, labels: list[Label]) -> None:
    def class_of(label: Label) -> str | None:
        return PurePosixPath(label.image).parent.name if config.check == "folder" else label.label

    columns = formats.cleanlab(labels, class_of, f"--labels {config.labels}")
    if not config.output.lower().endswith(".parquet"):
        storage.write_bytes(config.output, formats.json_bytes(columns))
        return
    need_pyarrow(f"--output {config.output} (a name that ends in .json needs none)")
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.table({"image": columns["images"], "label": columns["labels"], "pred_probs": columns["pred_probs"]})
    table = table.replace_schema_metadata({"classes": formats.json_bytes(columns["classes"]).strip()})
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    storage.write_bytes(config.output, buffer.getvalue())
