"""The processes that read and decode a shard's images while this one classifies."""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from must.base.errors import UserError
from must.data.format.samples import read_samples
from must.data.image.decode import seen
from must.data.image.preprocess import EvalView, Preprocess


class Decoded(NamedTuple):
    """A sample, its image as the model sees it (uint8 [S, S, 3]), or None and the reason why it cannot be seen."""

    key: str
    source: str
    pixels: np.ndarray | None
    reason: str


def decode_rows(
    path: Path, rows: np.ndarray, texts: list[bytes] | None, preprocess: Preprocess, max_pixels: int
) -> list[Decoded]:
    """The samples at `rows` of the table of offsets. The same decoder and view as for single images."""
    view, found = EvalView(preprocess), []
    for key, source, image in read_samples(path, rows, texts):
        try:
            found.append(Decoded(key, source, seen(image, view, max_pixels), ""))
        except UserError as error:
            found.append(Decoded(key, source, None, str(error)))
    return found
