"""The processes that read and decode a shard's images while this one classifies."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from must.base.workers import Workers
from must.data.format.samples import read_samples
from must.data.image.decode import seen
from must.data.image.preprocess import EvalView, Preprocess
from must.data.image.quiet import silence_pillow


class Decoded(NamedTuple):
    """A sample, its image as the model sees it (uint8 [S, S, 3]), or None and the reason why it cannot be seen."""

    key: str
    source: str
    pixels: np.ndarray | None
    reason: str


class Decoders(Workers):
    def __init__(self, workers: int) -> None:
        super().__init__(workers, __name__, silence_pillow)

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
            KilledWorkerError: a worker process was killed.
        """
        jobs = (
            (path, offsets[i : i + size], texts and texts[i : i + size], preprocess, max_pixels)
            for i in range(0, len(offsets), size)
        )
        yield from self.in_order(decode_rows, jobs)


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
