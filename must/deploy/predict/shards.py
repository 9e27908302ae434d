"""`must predict --shards`: a class for every image of a folder of shards, in one Parquet file per shard.

An existing file is complete: a run that was interrupted goes on with the missing files, and then writes the summary.
"""

import json
import logging
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, suppress
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import must
from must.base import storage
from must.base.errors import UserError
from must.base.parameters import require
from must.base.processes import cores
from must.base.progress import bar
from must.base.text import brief, encoded, printable
from must.base.workers import Workers
from must.config import PredictConfig
from must.data.format.index import Index, Shard, load_index
from must.data.format.samples import load_offsets, local_shard, read_samples
from must.data.image.decode import decode_view
from must.data.image.preprocess import EvalView, Preprocess
from must.data.sources.tables import need_pyarrow
from must.deploy.predict.session import Classifier, Opener, classify_readable, open_onnx, threshold
from must.deploy.predict.writer import Options, make_row, rank_classes

logger = logging.getLogger(__name__)

RUN_FILE, TOTALS_FILE = "run.json", "predictions.json"
READERS = 16  # files whose metadata are read at the same time
GROUP_ROWS = 8192  # rows that are kept in memory and then written as a row group
TAIL = 1 << 16  # bytes of a file's end that are read first: they contain the metadata
STATS_KEY = b"must"  # the name in the file's metadata


@dataclass(frozen=True)
class Run:
    """The parameters that are equal for all files of an output."""

    model_sha256: str
    index_sha256: str
    split: str  # "": all
    top_k: int
    abstain: float

    def require_same(self, stored: dict[str, Any], where: str) -> None:
        for name, value in asdict(self).items():
            stored_value = stored.get(name)
            require(
                stored_value == value and type(stored_value) is type(value),
                f"{where} is of another run: its {name} is {brief(stored_value)}, here it is {brief(value)}; "
                "choose another --output, or delete the predictions there",
            )


def predict_shards(config: PredictConfig, open_model: Opener = open_onnx) -> dict[str, int]:
    """Writes the missing files and the summary; returns the numbers of images that were read and not readable.

    Raises:
        ValueError: no model, no shards or damaged ones; or the output holds predictions of another run.
        storage.TransientError: a worker process was killed.
    """
    need_pyarrow(f"--output {config.output}")
    index = load_index(config.shards, config.index_sha256)
    shards = index.list_shards(config.split) if config.split else index.shards
    require(bool(shards), f"--shards {config.shards}: there are no images in it")
    with Workers(config.workers or cores(), decode_rows.__module__) as decoders:
        classifier = open_model(config)
        abstain = threshold(config.abstain, classifier, classifier.where)
        run = Run(classifier.sha256, index.sha256, config.split, config.top_k, abstain)
        sizes = claim(config.output, run, shards)
        there = [shard for shard in shards if file_name(shard) in sizes]
        missing = [shard for shard in shards if file_name(shard) not in sizes]
        with ThreadPoolExecutor(READERS) as pool:
            file_stats = list(pool.map(lambda shard: read_stats(config.output, sizes, shard, run), there))
        file_stats += predict_missing(config, index, missing, run, decoders, classifier) if missing else []
    return finish(config.output, run, len(missing), file_stats)


def predict_missing(
    config: PredictConfig, index: Index, shards: list[Shard], run: Run, decoders: Workers, classifier: Classifier
) -> list[dict[str, Any]]:
    """Writes these shards' files, one after the other; returns their metadata."""
    file_stats, size, total = [], config.batch_size, sum(shard.samples for shard in shards)
    names = [utf8(name) for name in classifier.classes]
    options = Options(run.top_k, run.abstain)
    with (
        bar(unit="img", desc="predict", total=total) as progress,
        closing(prefetched(config.shards, shards)) as shard_files,
    ):
        for shard, path, offsets in shard_files:
            parts = (offsets[start : start + size] for start in range(0, len(offsets), size))
            jobs = ((path, part, classifier.preprocess, index.max_pixels) for part in parts)
            batches = decoders.run(decode_rows, jobs, ordered=True)
            rows = make_rows(batches, classifier, names, options, progress.update)
            with storage.open_write(storage.join(config.output, file_name(shard))) as file:
                file_stats.append(write_rows(file, rows, shard, names, run))
    return file_stats


def prefetched(uri: str, shards: list[Shard]) -> Generator[tuple[Shard, Path, np.ndarray], None, None]:
    """Each shard, its tar on this machine, and its table of offsets, until the next one is taken; that one is copied
    from its bucket meanwhile."""

    def fetch(shard: Shard, stack: ExitStack) -> tuple[Shard, Path, np.ndarray]:
        return shard, stack.enter_context(local_shard(uri, shard)), load_offsets(uri, shard)

    with ExitStack() as copies, ThreadPoolExecutor(1) as pool:
        stacks = [copies.enter_context(ExitStack()) for _ in shards]
        future = pool.submit(fetch, shards[0], stacks[0])
        for number, stack in enumerate(stacks, 1):
            with stack:
                files = future.result()
                if number < len(shards):
                    future = pool.submit(fetch, shards[number], stacks[number])
                yield files


def claim(output: str, run: Run, shards: tuple[Shard, ...]) -> dict[str, int]:
    """Writes the run into an empty output; returns {name: bytes} of the Parquet files that are there."""
    uri = storage.join(output, RUN_FILE)
    if not storage.exists(uri):
        with suppress(storage.ConflictError):  # another program was faster
            storage.write_bytes(uri, encoded(json.dumps(asdict(run), indent=1) + "\n"), if_generation_match=0)
    run.require_same(storage.read_json(uri, "--output"), uri)
    sizes = {entry.name: entry.size for entry in storage.list_files(output)}
    sizes = {name: size for name, size in sizes.items() if name.startswith("predictions-") and "/" not in name}
    unknown = sorted(sizes.keys() - set(map(file_name, shards)))
    require(
        not unknown,
        f"{storage.join(output, *unknown[:1])} is of none of these shards; choose another --output, or delete it",
    )
    return sizes


def finish(output: str, run: Run, new: int, file_stats: list[dict[str, Any]]) -> dict[str, int]:
    """Writes and logs the summary of all files, of which `new` were missing; returns the numbers of images that were
    read and not readable."""
    classes: Counter[str] = Counter()
    for stats in file_stats:
        classes.update(stats["classes"])
    rows, unreadable, abstained = (
        sum(stats[key] for stats in file_stats) for key in ("rows", "unreadable", "abstained")
    )
    read, files = rows - unreadable, len(file_stats)
    content: dict[str, Any] = {"rows": rows, "unreadable": unreadable}
    text = f"{rows} images" + (f", {unreadable} could not be read" if unreadable else "")
    if run.abstain:
        coverage = (read - abstained) / read if read else None
        content |= {"abstained": abstained, "coverage": coverage}
        text += "" if coverage is None else f", {100 * coverage:.1f}% of those that could be read have a class"
    content |= {**asdict(run), "shards": files, "classes": dict(sorted(classes.items()))}
    content["must_version"] = must.__version__
    uri = storage.join(output, TOTALS_FILE)
    storage.write_bytes(uri, encoded(json.dumps(content, indent=1) + "\n"))
    old = f", {files - new} were there" if new < files else ""
    logger.info(printable(f"{text} -> {output} (files of {files} shards{old})"))
    logger.info(printable(f"all {files} shards are there: {uri}"))
    return {"images": read, "unreadable": unreadable}


class Decoded(NamedTuple):
    """A sample and its image as the model's input (uint8 [S, S, 3]), or None and the reason why it is unreadable."""

    key: str
    source: str
    pixels: np.ndarray | None
    reason: str


def decode_rows(path: Path, rows: np.ndarray, preprocess: Preprocess, max_pixels: int) -> list[Decoded]:
    """The samples at `rows` of the table of offsets. The same decoder and view as for single images."""
    view, decoded = EvalView(preprocess), []
    for key, source, image in read_samples(path, rows):
        try:
            decoded.append(Decoded(key, source, decode_view(image, view, max_pixels), ""))
        except UserError as error:
            decoded.append(Decoded(key, source, None, str(error)))
    return decoded


def file_name(shard: Shard) -> str:
    return f"predictions-{shard.name.removesuffix('.tar')}.parquet"


def make_rows(
    batches: Iterable[list[Decoded]],
    classifier: Classifier,
    names: list[str],
    options: Options,
    on_batch: Callable[[int], object],
) -> Iterator[dict[str, Any]]:
    """The columns of `write_rows`, and others, of each sample."""
    for batch in batches:
        answers = classify_readable(classifier, [item.pixels for item in batch])
        for item, answer in zip(batch, answers, strict=True):
            row: dict[str, Any] = {"key": utf8(item.key), "source": utf8(item.source), "abstained": False}
            if answer is None:
                row["reason"] = utf8(item.reason)
            else:
                best = np.sort(answer[0])
                row |= make_row(rank_classes("", *answer, names, options))
                row["margin"] = best[-1] - (best[-2] if len(best) > 1 else 0)
            yield row
        on_batch(len(batch))


def write_rows(file: Any, rows: Iterator[dict[str, Any]], shard: Shard, names: list[str], run: Run) -> dict[str, Any]:
    """Writes the rows of one shard, in its order, and their metadata, which it returns.

    Columns: key, source, class and probability (class_2, probability_2, ... with a larger top_k), margin (the first
    probability less the second), similarity (to the images that the model remembers, or null), abstained (with a
    threshold), reason (why the image could not be read, else null).
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    fields = [("key", pa.string()), ("source", pa.string())]
    for suffix in ("", *(f"_{rank}" for rank in range(2, min(run.top_k, len(names)) + 1))):
        fields += [(f"class{suffix}", pa.string()), (f"probability{suffix}", pa.float32())]
    fields += [("margin", pa.float32()), ("similarity", pa.float32())]
    fields += [("abstained", pa.bool_())] if run.abstain else []
    schema = pa.schema([*fields, ("reason", pa.string())])
    written = unreadable = abstained = 0
    classes: Counter[str] = Counter()
    with pq.ParquetWriter(file, schema, compression="zstd") as writer:
        while group := list(islice(rows, GROUP_ROWS)):
            writer.write_table(pa.Table.from_pylist(group, schema=schema))
            written += len(group)
            unreadable += sum("reason" in row for row in group)
            abstained += sum(row["abstained"] for row in group)
            classes.update(row["class"] for row in group if row.get("class") is not None)
        stats = {
            "run": asdict(run),
            "shard": shard.name,
            "shard_sha256": shard.sha256,
            "rows": written,
            "unreadable": unreadable,
            "abstained": abstained,
            "classes": {name: classes[name] for name in names if classes[name]},
        }
        writer.add_key_value_metadata({STATS_KEY: json.dumps(stats).encode()})
    return stats


def read_stats(output: str, sizes: dict[str, int], shard: Shard, run: Run) -> dict[str, Any]:
    """The metadata of the shard's file; reads only its end."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    uri, size = storage.join(output, file_name(shard)), sizes[file_name(shard)]
    end = storage.read_bytes(uri, max(0, size - TAIL))
    footer = int.from_bytes(end[-8:-4], "little") + 8
    if len(end) < footer <= size:
        end = storage.read_bytes(uri, size - footer)
    damaged = f"{uri} is damaged, or no file of `must predict --shards`; delete it and run the same command again"
    try:
        stats = json.loads(pq.read_metadata(pa.BufferReader(end[-footer:])).metadata[STATS_KEY])
        stored_shard = stats["shard"], stats["shard_sha256"], stats["rows"]
        numbers = [stats["unreadable"], stats["abstained"], *stats["classes"].values()]
        require(all(type(number) is int and number >= 0 for number in numbers), damaged)
        require(sum(numbers) == stats["rows"], damaged)
        stored_run = dict(stats["run"])
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, pa.ArrowException):
        raise UserError(damaged) from None
    run.require_same(stored_run, uri)
    require(
        stored_shard == (shard.name, shard.sha256, shard.samples),
        f"{uri} is of another shard than {shard.name}; choose another --output, or delete the predictions there",
    )
    return stats


def utf8(name: str) -> str:
    """The name with characters that UTF-8 cannot represent replaced."""
    return encoded(name).decode()
