"""`must predict --shards`: a class for every image of a folder of shards, in one Parquet file per shard.

Several programs can share the work, each with its own --part, and each can be stopped and started again: an existing
file is complete. A program that finds all files at its end writes the summary.
"""

import json
import logging
from collections import Counter
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, closing, suppress
from dataclasses import asdict, dataclass
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
from must.config.defaults import parse_part
from must.data.format.index import Index, Shard, load_index
from must.data.format.samples import load_offsets, local_shard, read_samples
from must.data.image.decode import decode_view
from must.data.image.preprocess import EvalView, Preprocess
from must.data.sources.tables import need_pyarrow
from must.deploy.predict.session import Classified, Classifier, Opener, open_onnx, threshold
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

    def require_same(self, stored: Any, where: str) -> None:
        for name, value in asdict(self).items():
            stored_value = stored.get(name) if isinstance(stored, dict) else None
            require(
                stored_value == value and type(stored_value) is type(value),
                f"{where} is of another run: its {name} is {brief(stored_value)}, here it is {brief(value)}; "
                "choose another --output, or delete the predictions there",
            )


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
    with Workers(config.workers or cores(), decode_rows.__module__) as decoders:
        classifier = open_model(config)
        abstain = threshold(config.abstain, classifier, classifier.where)
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
                for batch in decoders.run(decode_rows, jobs, ordered=True):
                    pixels = [item.pixels for item in batch if item.pixels is not None]
                    writer.add(batch, classifier(np.stack(pixels)) if pixels else None)
                    progress.update(len(batch))
                file_stats.append(writer.close(shard))
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


def claim(output: str, run: Run) -> None:
    """Writes the run into an empty output."""
    uri, content = storage.join(output, RUN_FILE), encoded(json.dumps(asdict(run), indent=1) + "\n")
    if not storage.exists(uri):
        with suppress(storage.ConflictError):  # another part was faster
            storage.write_bytes(uri, content, if_generation_match=0)
    run.require_same(storage.read_json(uri, "--output"), uri)


def predictions_in(output: str, shards: tuple[Shard, ...]) -> dict[str, int]:
    """{name: bytes} of the Parquet files in the output."""
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
    """The metadata of the shards' files."""

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
    file_stats = load_stats(config.output, list(shards), sizes, run)
    rows, unreadable, abstained = totals(file_stats)
    classes: Counter[str] = Counter()
    for stats in file_stats:
        classes.update(stats["classes"])
    content: dict[str, Any] = {"rows": rows, "unreadable": unreadable}
    if run.abstain:
        content |= {"abstained": abstained, "coverage": coverage(rows, unreadable, abstained)}
    content |= {**asdict(run), "shards": len(file_stats), "classes": dict(sorted(classes.items()))}
    content["must_version"] = must.__version__  # the bytes do not depend on the program that writes them
    uri = storage.join(config.output, TOTALS_FILE)
    storage.write_bytes(uri, encoded(json.dumps(content, indent=1) + "\n"))
    logger.info(printable(f"all {len(shards)} shards are there: {uri}"))


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


class ShardWriter(AbstractContextManager["ShardWriter"]):
    """Writes the rows of one shard, in its order, to an open file.

    Columns: key, source, class and probability (class_2, probability_2, ... with a larger top_k), margin (the first
    probability less the second), similarity (to the images that the model remembers, or null), abstained (with a
    threshold), reason (why the image could not be read, else null).
    """

    def __init__(self, file: Any, classes: list[str], run: Run) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        self.classes, self.run = [utf8(name) for name in classes], run
        self.options = Options(min(run.top_k, len(classes)), run.abstain)
        fields = [("key", pa.string()), ("source", pa.string())]
        for suffix in ("", *(f"_{rank}" for rank in range(2, self.options.top_k + 1))):
            fields += [(f"class{suffix}", pa.string()), (f"probability{suffix}", pa.float32())]
        fields += [("margin", pa.float32()), ("similarity", pa.float32())]
        fields += [("abstained", pa.bool_())] if run.abstain else []
        self.schema = pa.schema([*fields, ("reason", pa.string())])
        self.writer = pq.ParquetWriter(file, self.schema, compression="zstd")
        self.rows: list[dict[str, Any]] = []  # also with columns that the schema leaves out
        self.counts: Counter[str] = Counter()
        self.written = self.unreadable = self.abstained = 0

    def __exit__(self, *_: object) -> None:
        if self.writer.is_open:  # an error ended the shard; pyarrow would close it later, in the closed file
            with suppress(OSError, ValueError):
                self.writer.close()

    def add(self, decoded: list[Decoded], classified: Classified | None) -> None:
        """Adds a batch of samples; `classified`: those that have pixels, in their order; None: none has."""
        answers = iter(zip(*classified, strict=True) if classified else ())
        for item in decoded:
            row: dict[str, Any] = {"key": utf8(item.key), "source": utf8(item.source), "abstained": False}
            if item.pixels is None:
                row["reason"] = utf8(item.reason)
                self.unreadable += 1
            else:
                probability, similarity = next(answers)
                prediction = rank_classes("", probability, similarity, self.classes, self.options)
                best = np.sort(probability)
                row |= make_row(prediction) | {"margin": best[-1] - (best[-2] if len(best) > 1 else 0)}
                self.abstained += prediction.abstained
                self.counts.update([prediction.name] if prediction.name is not None else [])
            self.rows.append(row)
        if len(self.rows) >= GROUP_ROWS:
            self.write_group()

    def write_group(self) -> None:
        import pyarrow as pa

        self.writer.write_table(pa.Table.from_pylist(self.rows, schema=self.schema))
        self.written += len(self.rows)
        self.rows.clear()

    def close(self, shard: Shard) -> dict[str, Any]:
        """Writes the rest and the metadata; returns their content."""
        self.write_group()
        stats = {
            "run": asdict(self.run),
            "shard": shard.name,
            "shard_sha256": shard.sha256,
            "rows": self.written,
            "unreadable": self.unreadable,
            "abstained": self.abstained,
            "classes": {name: self.counts[name] for name in self.classes if self.counts[name]},
        }
        self.writer.add_key_value_metadata({STATS_KEY: json.dumps(stats).encode()})
        self.writer.close()
        return stats


def read_stats(uri: str, size: int, shard: Shard, run: Run) -> dict[str, Any]:
    """The metadata of a file of `size` bytes; reads only its end."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    end = storage.read_bytes(uri, max(0, size - TAIL))
    footer = int.from_bytes(end[-8:-4], "little") + 8
    if len(end) < footer <= size:
        end = storage.read_bytes(uri, size - footer)
    try:
        stats = json.loads(pq.read_metadata(pa.BufferReader(end[-footer:])).metadata[STATS_KEY])
        stored_run, stored_shard = stats["run"], (stats["shard"], stats["shard_sha256"], stats["rows"])
        numbers = [stats["unreadable"], stats["abstained"], *stats["classes"].values()]
        valid = all(type(number) is int and number >= 0 for number in numbers) and sum(numbers) == stats["rows"]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, pa.ArrowException):
        valid = False
    require(valid, f"{uri} is damaged, or no file of `must predict --shards`; delete it and run the same command again")
    run.require_same(stored_run, uri)
    require(
        stored_shard == (shard.name, shard.sha256, shard.samples),
        f"{uri} is of another shard than {shard.name}; choose another --output, or delete the predictions there",
    )
    return stats


def utf8(name: str) -> str:
    """The name with characters that UTF-8 cannot represent replaced."""
    return encoded(name).decode()
