"""The stage `must backbones`: several CLIP models on the same images without labels, the most promising first."""

import json
import logging
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from must import __version__
from must.base import storage
from must.base.parameters import require
from must.base.text import brief, encoded, printable
from must.config import BackbonesConfig, ShardConfig
from must.data.loading.loader import EvalSource
from must.data.loading.reader import ShardReader
from must.data.shards.build import shard
from must.data.shards.listing import open_source
from must.data.sources.base import ListingReport
from must.data.sources.files import Folder, Manifest
from must.method.distributed.process_group import pick_device
from must.method.model.bundle import named_bundle, preprocess_of
from must.method.model.classifier import load_class_set
from must.method.select.check import agreement
from must.method.select.features import extract_features, subsample
from must.method.select.propagate import nearest, whitened

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Row:
    """The figures of one zero-shot model. Shares are from 0 to 1."""

    model: str
    score: float  # `dispersity`: what the models are ordered by
    agreement: float  # share of the 10 most similar images, by the model's own features, that have an image's class
    accuracy: float | None  # by labels, if there are any
    parameters: int  # of the image tower
    images_per_s: float  # on this machine, with reading and decoding
    megabytes: int  # of memory: the peak on a CUDA GPU, else the tower's weights


def backbones(config: BackbonesConfig) -> list[Row]:
    """Prints the table, best first, and writes it to --output.
    Raises ValueError: no images, or a model that cannot be loaded, or that the method cannot train."""
    class_set, device, rows = load_class_set(config.classes), pick_device(config.device), list[Row]()
    with tempfile.TemporaryDirectory(prefix="must-backbones-") as folder:
        reader = ShardReader(as_shards(config, folder), "train")
        truth = labels_of(reader, class_set.names)
        for number, model in enumerate(config.models, 1):
            logger.info(printable(f"{model} ({number} of {len(config.models)})"))
            rows.append(measure_model(config, model, reader, truth, device))
    rows.sort(key=lambda row: -row.score)
    summary = {"must_version": __version__, "images": min(len(reader), config.most), "config": config.to_dict()}
    if config.output:
        content = json.dumps(summary | {"best": rows[0].model, "models": [asdict(row) for row in rows]}, indent=1)
        storage.write_bytes(config.output, encoded(content + "\n"))
    logger.info("\n".join(table(rows)))
    logger.info(printable(f"most promising without labels, on {summary['images']:,} images: --model {rows[0].model}"))
    return rows


def as_shards(config: BackbonesConfig, folder: str) -> str:
    """Writes shards into `folder`: of at most --most files, evenly spread by name; of archives and tables, all images.
    Returns their URI."""
    source, uri, labels = open_source(config.images, config.labels, "--images"), config.images, config.labels
    if isinstance(source, Folder | Manifest):
        items = sorted(source.items(ListingReport(lambda name, why: None)))
        count = min(config.most, len(items))
        require(count > 0, f"--images {uri}: no images in there")
        base = uri if isinstance(source, Folder) else source.base
        base = base if storage.is_remote(base) else str(storage.local(base).absolute())
        lines = []
        for item in (items[position * len(items) // count] for position in range(count)):
            absolute = item.name.startswith("/") or "://" in item.name
            lines.append({"path": item.name if absolute else storage.join(base, item.name), "label": item.label})
        uri, labels = storage.join(folder, "images.jsonl"), "none" if labels == "none" else "csv"
        storage.write_bytes(uri, encoded("".join(json.dumps(line) + "\n" for line in lines)))
    output = storage.join(folder, "shards")
    shard(ShardConfig(source=uri, output=output, labels=labels, validate="header", max_rejected=0.5))
    return output


def labels_of(reader: ShardReader, classes: Sequence[str]) -> Tensor:
    """Each image's class number, -1 without a label. Raises ValueError: a label that is not a class."""
    numbers = {name: number for number, name in enumerate(classes)} | {None: -1}
    descriptions = [reader.description(image) for image in range(len(reader))]
    for description in descriptions:
        label, image = description.get("label"), printable(description.get("source", ""))
        require(label in numbers, f"--labels: {image}: its label {brief(label)} is no class of --classes")
    return torch.tensor([numbers[description.get("label")] for description in descriptions])


def measure_model(config: BackbonesConfig, model: str, reader: ShardReader, truth: Tensor, device: torch.device) -> Row:
    """One model's row; the model is freed afterwards. `truth`: from `labels_of`."""
    bundle = named_bundle(model, config.classes, config.device)
    source = EvalSource(reader, preprocess_of(bundle.description), config.batch_size, config.workers)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    began = time.monotonic()
    extracted = extract_features(bundle.model, subsample(source, config.most), device)
    seconds = time.monotonic() - began
    tower = [*bundle.model.visual.parameters()]
    weights = sum(value.numel() * value.element_size() for value in tower)
    probability = extracted.probabilities[0].float()
    labels, expected = probability.argmax(1), truth[extracted.numbers]
    neighbours, _ = nearest(whitened(extracted.features.to(device).float()))
    return Row(
        model=model,
        score=round(dispersity(probability), 4),
        agreement=round(float(agreement(labels, neighbours.cpu()).mean()), 4),
        accuracy=round(float((labels == expected)[expected >= 0].float().mean()), 4) if (expected >= 0).any() else None,
        parameters=sum(value.numel() for value in tower),
        images_per_s=round(len(labels) / seconds, 1),
        megabytes=(torch.cuda.max_memory_allocated(device) if device.type == "cuda" else weights) // 10**6,
    )


def dispersity(probability: Tensor) -> float:
    """Nuclear norm of the probabilities [N, K], divided by its largest possible value: from 0 to 1.

    Large when predictions are confident and cover many classes. It ranked models best among the scores that Deng, Suh,
    Gould and Zheng compared (arXiv 2302.01094).
    """
    images, classes = probability.shape
    return float(torch.linalg.matrix_norm(probability.double(), "nuc")) / (min(images, classes) * images) ** 0.5


def table(rows: list[Row]) -> list[str]:
    """One line per model, under a heading."""
    width = max(len(printable(row.model)) for row in rows)
    lines = [f"{'model':{width}}   score  agreement  accuracy  parameters  images/s      MB"]
    for row in rows:
        known = "" if row.accuracy is None else f"{row.accuracy:.1%}"
        lines.append(
            f"{printable(row.model):{width}}  {row.score:6.3f}  {row.agreement:9.1%}  {known:>8}  "
            f"{row.parameters / 1e6:8.1f} M  {row.images_per_s:8.1f}  {row.megabytes:6,}"
        )
    return lines
