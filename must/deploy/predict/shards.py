"""`must predict --shards`: a class for every image of a folder of shards, in one Parquet file per shard.

Several programs can share the work, each with its own --part, and each can be stopped and started again: an existing
file is complete. A program that finds all files at its end writes the summary.
"""

import json
import logging
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import must
from must.base import storage
from must.base.console import silence_pillow
from must.base.parameters import require
from must.base.processes import cores
from must.base.progress import bar
from must.base.text import encoded, printable
from must.base.workers import Workers
from must.config import PredictConfig
from must.config.defaults import parse_part
from must.data.format.index import Index, Shard, load_index
from must.data.format.samples import load_offsets, local_shard
from must.data.sources.tables import need_pyarrow
from must.deploy.predict.parquet import Run, ShardWriter, decode_rows, file_name, read_stats
from must.deploy.predict.session import Classifier, Opener, open_onnx, threshold

logger = logging.getLogger(__name__)

RUN_FILE, TOTALS_FILE = "run.json", "predictions.json"
READERS = 16  # files whose metadata are read at the same time


def predict_shards(config: PredictConfig, open_model: Opener = open_onnx) -> dict[str, int]:
    """Writes the missing files of this part; returns the numbers of its images that were read and not readable.

    Raises:
        ValueError: no model, no shards or damaged ones; or the output holds predictions of another run.
        storage.TransientError: a worker process was killed.
    """
    need_pyarrow(f"--output {config.output}")
    index = load_index(config.shards, config.index_sha256)
    shards = index.list_shards(config.split) if config.split else index.shards
    require(bool(shards), f"--shards {config.shards}: there are no images in it")
    number, parts = parse_part(config.part)
    part = shards[number - 1 :: parts]
    with Workers(config.workers or cores(), decode_rows.__module__, silence_pillow) as decoders:
        classifier = open_model(config)
        abstain = threshold(config.abstain, classifier.metadata, classifier.where)
        run = Run(classifier.sha256, index.sha256, config.split, config.top_k, abstain)
        claim(config.output, run)
        sizes = predictions_in(config.output, shards)
        file_stats = load_stats(config.output, [shard for shard in part if file_name(shard) in sizes], sizes, run)
        missing = [shard for shard in part if file_name(shard) not in sizes]
        file_stats += predict_missing(config, index, missing, run, decoders, classifier) if missing else []
    rows, unreadable, _ = totals(file_stats)
    logger.info(printable(summary(config.output, run, len(missing), file_stats)))
    finish(config, shards, run)
    return {"images": rows - unreadable, "unreadable": unreadable}


def predict_missing(
    config: PredictConfig, index: Index, shards: list[Shard], run: Run, decoders: Workers, classifier: Classifier
) -> list[dict[str, Any]]:
    """Writes these shards' files, one after the other; returns their metadata."""
    file_stats, total = [], sum(shard.samples for shard in shards)
    with (
        bar(unit="img", desc="predict", total=total) as progress,
        closing(prefetched(config.shards, shards)) as shard_files,
    ):
        for shard, path, offsets in shard_files:
            size, preprocess = config.batch_size, classifier.preprocess
            jobs = ((path, offsets[i : i + size], preprocess, index.max_pixels) for i in range(0, len(offsets), size))
            uri = storage.join(config.output, file_name(shard))
            with storage.open_write(uri) as file, ShardWriter(file, classifier.classes, run) as writer:
                for batch in decoders.in_order(decode_rows, jobs):
                    pixels = [item.pixels for item in batch if item.pixels is not None]
                    writer.add(batch, classifier(np.stack(pixels)) if pixels else None)
                    progress.update(len(batch))
                file_stats.append(writer.close(shard))
    return file_stats


class ShardFiles(NamedTuple):
    """A shard, the path of its tar on this machine, and its table of offsets."""

    shard: Shard
    path: Path
    offsets: np.ndarray


def prefetched(uri: str, shards: list[Shard]) -> Generator[ShardFiles, None, None]:
    """The shards, each until the next one is taken; that one is copied from its bucket meanwhile."""

    def fetch(shard: Shard, stack: ExitStack) -> ShardFiles:
        return ShardFiles(shard, stack.enter_context(local_shard(uri, shard)), load_offsets(uri, shard))

    with ExitStack() as copies, ThreadPoolExecutor(1) as pool:
        stacks = [copies.enter_context(ExitStack()) for _ in shards]
        future = pool.submit(fetch, shards[0], stacks[0])
        for number, stack in enumerate(stacks, 1):
            with stack:
                files = future.result()
                if number < len(shards):
                    future = pool.submit(fetch, shards[number], stacks[number])
                yield files


def claim(output: str, run: Run) -> None:
    """Writes the run into an empty output. Raises ValueError: the output belongs to another run."""
    uri, content = storage.join(output, RUN_FILE), encoded(json.dumps(asdict(run), indent=1) + "\n")
    if not storage.exists(uri):
        with suppress(storage.ConflictError):  # another part was faster
            storage.write_bytes(uri, content, if_generation_match=0)
    run.require_same(storage.read_json(uri, "--output"), uri)


def predictions_in(output: str, shards: tuple[Shard, ...]) -> dict[str, int]:
    """{name: bytes} of the Parquet files in the output. Raises ValueError: one of them belongs to no shard."""
    known = {file_name(shard) for shard in shards}
    sizes = {entry.name: entry.size for entry in storage.list_files(output)}
    sizes = {name: size for name, size in sizes.items() if name.startswith("predictions-") and "/" not in name}
    unknown = sorted(sizes.keys() - known)
    require(
        not unknown,
        f"{storage.join(output, *unknown[:1])} is of none of these shards; choose another --output, or delete it",
    )
    return sizes


def load_stats(output: str, shards: list[Shard], sizes: dict[str, int], run: Run) -> list[dict[str, Any]]:
    """The metadata of the shards' files. Raises ValueError: one is damaged or of another run."""

    def stats(shard: Shard) -> dict[str, Any]:
        return read_stats(storage.join(output, file_name(shard)), sizes[file_name(shard)], shard, run)

    with ThreadPoolExecutor(READERS) as pool:
        return list(pool.map(stats, shards))


def finish(config: PredictConfig, shards: tuple[Shard, ...], run: Run) -> None:
    """Writes the summary if all files exist, else logs how many are missing."""
    sizes = predictions_in(config.output, shards)
    missing = len(shards) - len(sizes)
    if missing:
        logger.info(f"{missing} of {len(shards)} shards are not done; the last part to finish writes the summary")
        return
    uri = storage.join(config.output, TOTALS_FILE)
    storage.write_bytes(uri, totals_json(run, load_stats(config.output, list(shards), sizes, run)))
    logger.info(printable(f"all {len(shards)} shards are there: {uri}"))


def totals_json(run: Run, file_stats: list[dict[str, Any]]) -> bytes:
    """The bytes of predictions.json, which do not depend on the program that writes it."""
    rows, unreadable, abstained = totals(file_stats)
    classes: dict[str, int] = {}
    for stats in file_stats:
        for name, number in stats["classes"].items():
            classes[name] = classes.get(name, 0) + number
    content: dict[str, Any] = {"rows": rows, "unreadable": unreadable}
    if run.abstain:
        content |= {"abstained": abstained, "coverage": coverage(rows, unreadable, abstained)}
    content |= {**asdict(run), "shards": len(file_stats), "classes": dict(sorted(classes.items()))}
    return encoded(json.dumps({**content, "must_version": must.__version__}, indent=1) + "\n")


def totals(file_stats: list[dict[str, Any]]) -> list[int]:
    """The number of rows, of unreadable ones, of abstentions."""
    return [sum(stats[name] for stats in file_stats) for name in ("rows", "unreadable", "abstained")]


def coverage(rows: int, unreadable: int, abstained: int) -> float | None:
    """The share of the readable images that have a class; None: no image is readable."""
    return (rows - unreadable - abstained) / (rows - unreadable) if rows > unreadable else None


def summary(output: str, run: Run, new: int, file_stats: list[dict[str, Any]]) -> str:
    """The last log line of a part."""
    rows, unreadable, abstained = totals(file_stats)
    text = f"{rows} images" + (f", {unreadable} could not be read" if unreadable else "")
    if run.abstain and (share := coverage(rows, unreadable, abstained)) is not None:
        text += f", {100 * share:.1f}% of those that could be read have a class"
    old = f", {len(file_stats) - new} were there" if new < len(file_stats) else ""
    return f"{text} -> {output} (files of {len(file_stats)} shards{old})"
