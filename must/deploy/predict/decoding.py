"""The processes that read and decode a shard's images while this one classifies."""

from __future__ import annotations

import gc
import os
import signal
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import NamedTuple

import numpy as np

from must.base.processes import begin_worker, start_context
from must.base.storage import TransientError
from must.data.format.samples import read_samples
from must.data.image.decode import seen
from must.data.image.preprocess import EvalView, Preprocess
from must.data.image.quiet import silence_pillow

AHEAD = 2  # batches a worker that are read before they are asked for


class Decoded(NamedTuple):
    """A sample, its image as the model sees it (uint8 [S, S, 3]), or None and the reason why it cannot be seen."""

    key: str
    source: str
    pixels: np.ndarray | None
    reason: str


class Decoders:
    """A context manager around the processes. With one worker everything happens in this process."""

    def __init__(self, workers: int) -> None:
        self.workers = workers
        self.executor: ProcessPoolExecutor | None = None

    def __enter__(self) -> Decoders:
        if self.workers > 1:
            self.executor = ProcessPoolExecutor(
                self.workers, start_context(__name__), follow_parent, (dict(os.environ),)
            )
            collecting = gc.isenabled()
            gc.disable()  # nor may a new process collect anything before `follow_parent` has begun
            try:
                self.executor.submit(int)  # they start now, before this process has threads of a model's
            finally:
                if collecting:
                    gc.enable()
        return self

    def __exit__(self, *error: object) -> None:
        if self.executor is not None:
            self.executor.shutdown(wait=True, cancel_futures=True)

    def batches(
        self,
        path: Path,
        offsets: np.ndarray,
        texts: list[bytes] | None,
        size: int,
        preprocess: Preprocess,
        max_pixels: int,
    ) -> Iterator[list[Decoded]]:
        """The samples of a local shard in order, `size` at a time; a few batches are in memory at once.

        Raises:
            ValueError: the shard and its table of offsets do not fit.
            TransientError: a worker process was killed.
        """
        jobs = (
            (path, offsets[i : i + size], texts and texts[i : i + size], preprocess, max_pixels)
            for i in range(0, len(offsets), size)
        )
        if self.executor is None:
            yield from (decode_rows(*job) for job in jobs)
            return
        waiting: deque[Future[list[Decoded]]] = deque()
        try:
            for job in jobs:
                waiting.append(self.executor.submit(decode_rows, *job))
                if len(waiting) > AHEAD * self.workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        except BrokenProcessPool:
            raise TransientError(
                "a worker process was killed, most likely because the memory was full; "
                "run the same command again to go on where it was, with fewer --workers"
            ) from None


def decode_rows(
    path: Path, rows: np.ndarray, texts: list[bytes] | None, preprocess: Preprocess, max_pixels: int
) -> list[Decoded]:
    """The samples at `rows` of the table of offsets. The same decoder and view as for single images."""
    view, found = EvalView(preprocess), []
    for key, source, image in read_samples(path, rows, texts):
        try:
            found.append(Decoded(key, source, seen(image, view, max_pixels), ""))
        except ValueError as error:
            found.append(Decoded(key, source, None, str(error)))
    return found


def follow_parent(environment: dict[str, str]) -> None:
    """Prepares a worker: it ends with its parent, whose the signals are to answer.

    What it has of its parent is never collected here: a session of onnxruntime would wait for its threads, which
    a forked process does not have.
    """
    gc.freeze()
    gc.enable()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    begin_worker(environment)
    silence_pillow()
