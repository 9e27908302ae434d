"""Classifies many images: processes read and decode them, in order, while the model runs and names are listed."""

import queue
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from multiprocessing.pool import ThreadPool
from typing import Any, TypeVar

import numpy as np

from must.base.processes import Workers, per_process
from must.data.image.preprocess import EvalView
from must.prediction.images import Found
from must.prediction.onnx_model import Classified, Classifier
from must.prediction.writer import Options, Prediction, Unreadable, rank_classes

READERS = 16  # threads that read from a bucket for one process; each waits for the network most of the time
AHEAD = 3  # batches for each process that may be waiting for their turn
NAMES = 5000  # that are listed in advance
Read = Callable[[Found, EvalView], tuple[np.ndarray | None, str]]
Batch = tuple[list[Found], np.ndarray, list[str]]
Value = TypeVar("Value")


def classify_many(
    classifier: Classifier, found: Iterable[Found], view: EvalView, read: Read, options: Options, workers: int
) -> Iterator[Prediction | Unreadable]:
    """Predictions in the order of the images: a batch is classified while `workers` processes decode later ones and
    the results of the one before are used. `read`: a function of a module, as `read_pixels`."""

    def finish(found: list[Found], reasons: list[str], output: Any) -> Iterator[Prediction | Unreadable]:
        names, result = [one.name for one in found], output and output.get()
        return rank_batch(names, reasons, result, classifier.classes, options)

    with ThreadPool(1) as model:
        waiting: tuple[Any, ...] = ()
        for found_ones, pixels, reasons in read_batches(found, view, read, options.batch_size, workers):
            started = found_ones, reasons, model.apply_async(classifier, (pixels,)) if len(pixels) else None
            if waiting:
                yield from finish(*waiting)
            waiting = started
        if waiting:
            yield from finish(*waiting)


def rank_batch(
    names: list[str], reasons: Sequence[str], output: Classified | None, classes: list[str], options: Options
) -> Iterator[Prediction | Unreadable]:
    """The predictions of a batch. `reasons`: "" for each image that has a row in `output`."""
    row = 0
    for name, reason in zip(names, reasons, strict=True):
        if reason or output is None:
            yield Unreadable(name, reason)
            continue
        embedding = None if output.embedding is None else output.embedding[row]
        yield rank_classes(name, output.probability[row], output.similarity[row], classes, options, embedding)
        row += 1


def read_batches(found: Iterable[Found], view: EvalView, read: Read, size: int, workers: int) -> Iterator[Batch]:
    """Batches in order: images, pixels uint8 [readable ones, S, S, 3], and for each image "" or why it is not read."""
    names, batches = in_advance(found, NAMES), dict[int, list[Found]]()
    done, taken, listed = dict[int, tuple[np.ndarray, list[str]]](), 0, False

    def jobs() -> Iterator[Any]:
        nonlocal listed
        number = 0
        while batch := list(islice(names, size)):
            while number - taken >= AHEAD * workers:
                yield None  # no job for now: one before is not done yet
            batches[number] = batch
            yield number, batch, view, read
            number += 1
        listed = True

    waiting = jobs()
    with Workers(workers) as pool:
        while not listed:  # `run` also ends where the last job is done while there is none for now
            for number, *result in pool.run(read_batch, waiting):
                done[number] = result[0], result[1]
                while taken in done:
                    yield batches.pop(taken), *done.pop(taken)
                    taken += 1


def read_batch(number: int, found: list[Found], view: EvalView, read: Read) -> tuple[int, np.ndarray, list[str]]:
    """In a process: decodes the images of a batch; images of a bucket are read by threads."""
    remote = any(one.source is None or one.source.may_be_remote for one in found)
    results = list((count_readers().imap if remote else map)(lambda one: read(one, view), found))
    pixels = [picture for picture, _ in results if picture is not None]
    return number, np.stack(pixels) if pixels else np.empty((0, 0, 0, 3), np.uint8), [reason for _, reason in results]


@per_process
def count_readers() -> ThreadPool:
    return ThreadPool(READERS)


def in_advance(values: Iterable[Value], most: int) -> Iterator[Value]:
    """The same values, of which up to `most` are computed in advance by a thread."""
    ready = queue.Queue[tuple[Value | None, BaseException | None]](most)

    def run() -> None:
        try:
            for value in values:
                ready.put((value, None))
            ready.put((None, StopIteration()))
        except BaseException as error:
            ready.put((None, error))

    threading.Thread(target=run, daemon=True).start()
    while True:
        value, error = ready.get()
        if isinstance(error, StopIteration):
            return
        if error is not None:
            raise error
        yield value  # type: ignore[misc]
