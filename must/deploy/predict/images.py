"""`must predict` of an ONNX model: images -> classes (numpy, Pillow, onnxruntime; no torch)."""

import glob
import logging
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import chain, islice
from multiprocessing.pool import AsyncResult, ThreadPool
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from must.base import storage
from must.base.errors import TransientError
from must.base.parameters import require
from must.base.processes import cores
from must.base.program import bar
from must.base.text import printable
from must.config import PredictConfig
from must.config.work import METRICS_FILE, PREDICTIONS_FILE, REFINED_FILE
from must.data.image.decode import decode_view
from must.data.image.preprocess import EvalView
from must.data.sources.files import Folder, ListingReport, no_images, not_read
from must.deploy.predict.session import ImageClassifier, threshold
from must.deploy.predict.writer import Options, Prediction, open_writer, rank_classes

logger = logging.getLogger(__name__)

OTHERS_FILES = REFINED_FILE, METRICS_FILE  # beside another predictions.csv
ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz")
READERS = min(32, cores() + 4)  # threads
PEEKED = 4096  # bytes of standard input that are examined: is it a picture, or names?


def predict_images(
    config: PredictConfig, classifier: ImageClassifier, take: Callable[[Prediction], None] | None = None
) -> dict[str, int]:
    """Classifies images, prints a table or writes a file; returns the numbers of images read and not readable. An image
    that cannot be read is reported on stderr and skipped.
    `take`: is called with each prediction; then no table is printed."""
    options = Options(config.top_k, threshold(config.abstain, classifier, classifier.where), config.batch_size)
    view, counts, abstained = EvalView(classifier.preprocess), {"images": 0, "unreadable": 0}, 0
    problems = ListingReport(lambda name, why: warn(name, why, counts))
    names = ((name, name) for name in find_images(config.images, problems))
    progress = bar(unit="img", desc="predict", leave=False, quiet=not config.output)  # no bar between table rows
    with open_writer(config.output) as writer, progress:
        for prediction in classify(
            classifier, names, lambda name: read_pixels(name, view), options, read_ahead="-" not in config.images
        ):
            progress.update()
            if isinstance(prediction, Unreadable):
                warn(prediction.image, prediction.reason, counts)
                continue
            counts["images"] += 1
            abstained += prediction.abstained
            (take or writer)(prediction)
        if problems.skipped and counts["images"]:
            tqdm.write(f"other files, not read: {not_read(problems.skipped)}", file=sys.stderr)
        require(counts["images"] > 0, "none of the images could be read")
    if config.output:
        numbers = {"without a class": abstained, "could not be read": counts["unreadable"]}
        also = "".join(f", {count:,} {what}" for what, count in numbers.items() if count)
        logger.info(f"{counts['images']:,} images{also} -> {config.output}")
    return counts


def require_own_place(output: str) -> None:
    """Refuses predictions.csv in the folder of `must refine` or `must evaluate`, whose file has this name too."""
    folder, slash, file = output.rpartition("/")
    for name in OTHERS_FILES if file == PREDICTIONS_FILE else ():
        require(
            not storage.exists(storage.join(folder or slash or ".", name)),
            f"--output {output}: {folder} holds {name} of another command; write to another folder",
        )


class Unreadable(NamedTuple):
    image: str
    reason: str


def classify(
    classifier: ImageClassifier,
    images: Iterable[tuple[str, Any]],
    read: Callable[[Any], tuple[np.ndarray | None, str]],
    options: Options,
    read_ahead: bool = True,
) -> Iterator[Prediction | Unreadable]:
    """Predictions in the order of the images, a batch at a time. `images`: pairs of a name and an argument for `read`,
    which returns (uint8 [S, S, 3], "") or (None, reason) and is called in threads. `read_ahead`: the next batch is read
    while a batch is classified."""
    remaining, started = iter(images), deque[list[tuple[str, AsyncResult[tuple[np.ndarray | None, str]]]]]()
    first = list(islice(remaining, options.batch_size))
    remaining = chain(first, remaining)
    # After an error nothing else is read, and nobody waits for its threads. A thread less saves 0.1 ms.
    with ThreadPool(min(READERS, 2 * len(first) or 1)) as pool:

        def start_batch() -> None:
            batch = islice(remaining, options.batch_size)
            if reading := [(name, pool.apply_async(read, (value,))) for name, value in batch]:
                started.append(reading)

        start_batch()
        while started:
            if read_ahead:
                start_batch()
            batch = started.popleft()
            pixels, reasons = zip(*(result.get() for _, result in batch), strict=True)
            readable = [picture for picture in pixels if picture is not None]
            rows = zip(*classifier(np.stack(readable)), strict=True) if readable else iter(())
            for (name, _), picture, reason in zip(batch, pixels, reasons, strict=True):
                if picture is None:
                    yield Unreadable(name, reason)
                else:
                    yield rank_classes(name, *next(rows), classifier.classes, options)
            if not read_ahead:
                start_batch()


def read_pixels(name: str, view: EvalView) -> tuple[np.ndarray | None, str]:
    """(uint8 [S, S, 3], "") or (None, the reason). Decoder and view are those of `must evaluate`.
    Raises TransientError: a bucket does not answer, or another program has ended the process that decodes."""
    try:
        return decode_view(sys.stdin.buffer.read() if name == "-" else storage.read_bytes(name), view), ""
    except TransientError:
        raise
    except (OSError, ValueError) as error:
        return None, getattr(error, "strerror", None) or str(error)


def find_images(arguments: list[str], problems: ListingReport) -> Iterator[str]:
    """File names: the arguments themselves; files of folders (recursively, as in `must shard`, sorted); matches of
    globs; for '-' the names on stdin, or '-' itself if stdin is a picture. An argument without images is a problem."""
    for name in arguments:
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
        elif name.endswith(ARCHIVES):
            problems.reject(name, "is an archive; unpack it, or label shards of it: `must shard`, then `must refine`")
        else:
            yield name


def images_in(folder: str, problems: ListingReport) -> list[str]:
    """The images below a folder or a bucket's prefix; a URI with nothing below it is taken for a file."""
    inside = ListingReport(lambda name, why: problems.reject(storage.join(folder, name), why))
    images = sorted(storage.join(folder, item.name) for item in Folder(folder, "none").items(inside))
    problems.skipped.update(inside.skipped)
    if images or (storage.is_remote(folder) and not inside.skipped):
        return images or [folder]
    problems.reject(folder, no_images(inside.skipped))
    return []


def is_picture_on_stdin() -> bool:
    """Whether the first bytes of stdin contain NUL, as in every picture's file and in no list of names."""
    buffer: Any = getattr(sys.stdin, "buffer", None)
    return buffer is not None and b"\0" in buffer.peek(PEEKED)[:PEEKED]


def require_images(names: list[str]) -> None:
    """Called before the model is loaded: at least one of the files must exist."""
    existing = [name for name in names if name == "-" or storage.is_remote(name) or storage.local(name).exists()]
    existing = existing or [name for name in names if glob.glob(name, recursive=True)]  # noqa: PTH207
    more = f", and {len(names) - 1:,} more" if len(names) > 1 else ""
    require(bool(existing), f"{printable(names[0])}: no such file{more}")


def warn(name: str, problem: str, counts: dict[str, int]) -> None:
    counts["unreadable"] += 1
    tqdm.write(printable(f"{name}: {problem}"), file=sys.stderr)
