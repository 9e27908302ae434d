"""`must predict` of an ONNX model: images -> classes, with the file alone (numpy, Pillow, onnxruntime; no torch)."""

import glob
import logging
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice, repeat
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from must.base import storage
from must.base.parameters import require
from must.base.progress import bar
from must.base.text import printable
from must.config import PredictConfig
from must.data.image.decode import decode_view
from must.data.image.preprocess import EvalView
from must.data.sources.base import ListingReport, no_images, not_read
from must.data.sources.files import Folder
from must.deploy.predict.session import Classifier, Opener, onnx_model, stored_threshold, threshold
from must.deploy.predict.shards import predict_shards
from must.deploy.predict.writer import Prediction, open_writer

logger = logging.getLogger(__name__)

PEEKED = 4096  # bytes of standard input that tell a picture from names


def predict_images(
    config: PredictConfig, take: Callable[[Prediction], None] | None = None, open_model: Opener = onnx_model
) -> dict[str, int]:
    """Classifies images, prints a table or writes a file; returns how many images were read and how many were not.

    An image that cannot be read is one line on stderr and does not stop the others. `--shards`: see predict_shards.

    Args:
        take: gets each prediction, in place of the table on the terminal.
        open_model: finds the model; else it is an ONNX file.

    Raises:
        ValueError: no model, or none of the images could be read.
    """
    if config.shards:
        return predict_shards(config, open_model)
    require(
        not config.embeddings or bool(config.output) or take is not None,
        "--embeddings: a table on the terminal holds none; give --output FILE.jsonl",
    )
    with open_model(config) as model:
        classifier = model.open(False)
    if config.embeddings:
        classifier.require_embeddings()
    unsure = threshold(config.abstain, classifier.metadata, config.model)
    view, top = EvalView(classifier.preprocess), min(config.top_k, len(classifier.classes))
    counts = {"images": 0, "unreadable": 0}
    problems = ListingReport(lambda name, why: warn(name, why, counts))
    names = ((name, name) for name in find_images(config.images, problems))
    options = Options(top, unsure, config.embeddings, config.batch_size)
    shown = bar(unit="img", desc="predict", leave=False, quiet=not config.output)  # none between the rows of a table
    own = 0.0 if unsure else stored_threshold(classifier.metadata, config.model) or 0.0
    with open_writer(config.output, top, unsure > 0, own) as writer, shown:
        for found in classify(classifier, names, lambda name: read_pixels(name, view), options):
            shown.update()
            if isinstance(found, Unreadable):
                warn(found.image, found.reason, counts)
                continue
            counts["images"] += 1
            (take or writer)(found)
        if problems.skipped and counts["images"]:
            tqdm.write(f"other files, not read: {not_read(problems.skipped)}", file=sys.stderr)
        require(counts["images"] > 0, "none of the images could be read")
    if config.output:
        missing = f", {counts['unreadable']} could not be read" if counts["unreadable"] else ""
        logger.info(f"{counts['images']} images{missing} -> {config.output}")
    return counts


class Options(NamedTuple):
    """What is wanted of each image: `abstain` is a probability, below which no class is named."""

    top_k: int = 1
    abstain: float = 0.0
    embeddings: bool = False
    batch_size: int = 32


class Unreadable(NamedTuple):
    image: str
    reason: str


def classify(
    classifier: Classifier,
    images: Iterable[tuple[str, Any]],
    read: Callable[[Any], tuple[np.ndarray | None, str]],
    options: Options,
) -> Iterator[Prediction | Unreadable]:
    """Predictions in the order of the images, a batch at a time.

    Args:
        images: pairs of a name and what `read` takes.
        read: gives uint8 [S, S, 3], or None and the reason; it is called in threads.
    """
    waiting = iter(images)
    with ThreadPoolExecutor() as pool:
        while batch := list(islice(waiting, options.batch_size)):
            found = list(pool.map(lambda one: read(one[1]), batch))
            whole = [pixels for pixels, _ in found if pixels is not None]
            rows: Iterator[tuple[np.ndarray, np.ndarray | None]] = iter(())
            if whole:
                probability, embedding = classifier.answer(np.stack(whole), options.embeddings)
                rows = zip(probability, repeat(None) if embedding is None else embedding, strict=False)
            for (name, _), (pixels, reason) in zip(batch, found, strict=True):
                yield Unreadable(name, reason) if pixels is None else predicted(name, next(rows), classifier, options)


def predicted(
    name: str, said: tuple[np.ndarray, np.ndarray | None], classifier: Classifier, options: Options
) -> Prediction:
    row, embedding = said
    best = np.argsort(-row, kind="stable")[: options.top_k]
    classes, values = [classifier.classes[i] for i in best], [float(row[i]) for i in best]
    return Prediction(name, classes, values, bool(row[best[0]] < options.abstain), embedding)


def read_pixels(name: str, view: EvalView) -> tuple[np.ndarray | None, str]:
    """(uint8 [S, S, 3], "") or (None, the reason). The same decoder and view as `must evaluate`."""
    try:
        return decode_view(sys.stdin.buffer.read() if name == "-" else storage.read_bytes(name), view), ""
    except (OSError, ValueError) as error:
        return None, getattr(error, "strerror", None) or str(error)


def find_images(given: list[str], problems: ListingReport) -> Iterator[str]:
    """File names: as given, those in folders (recursively, as `must shard` finds them, sorted), those that match a
    glob, those on stdin for '-', or '-' itself where stdin is a picture. What stands for no image is a problem."""
    for name in given:
        if name == "-" and not is_picture_on_stdin():
            empty = True
            for line in filter(str.strip, sys.stdin):
                empty = False
                yield line.rstrip("\n")
            if empty:
                problems.reject(name, "standard input holds neither names nor a picture")
        elif name != "-" and (storage.is_remote(name) or storage.local(name).is_dir()):
            yield from images_in(name, problems)
        elif glob.has_magic(name) and not storage.exists(name):
            matches = sorted(glob.glob(name, recursive=True))  # noqa: PTH207, Path.glob takes no absolute pattern
            if not matches:
                problems.reject(name, "matches no file")
            yield from matches
        else:
            yield name


def images_in(folder: str, problems: ListingReport) -> list[str]:
    """The images below a folder or a bucket's prefix; a URI with nothing below it is a file's."""
    inside = ListingReport(lambda name, why: problems.reject(storage.join(folder, name), why))
    found = sorted(storage.join(folder, item.name) for item in Folder(folder, "none").items(inside))
    problems.skipped.update(inside.skipped)
    if found or (storage.is_remote(folder) and not inside.skipped):
        return found or [folder]
    problems.reject(folder, no_images(inside.skipped))
    return []


def is_picture_on_stdin() -> bool:
    """Names hold no NUL, and the first bytes of every picture's file do."""
    buffer: Any = getattr(sys.stdin, "buffer", None)
    return buffer is not None and b"\0" in buffer.peek(PEEKED)[:PEEKED]


def require_some(given: list[str]) -> None:
    """Before a model is loaded. Raises ValueError: none of the files is there."""
    gone = [name for name in given if name != "-" and not storage.is_remote(name) and not storage.local(name).exists()]
    gone = [name for name in gone if not (glob.has_magic(name) and glob.glob(name, recursive=True))]  # noqa: PTH207
    more = f", and {len(gone) - 1:,} more" if len(gone) > 1 else ""
    require(not gone or len(gone) < len(given), f"{printable(gone[0] if gone else '')}: no such file{more}")


def warn(name: str, problem: str, counts: dict[str, int]) -> None:
    counts["unreadable"] += 1
    tqdm.write(printable(f"{name}: {problem}"), file=sys.stderr)
