"""Copies TensorBoard's files to another folder or bucket while they grow, so that the curves can be watched there."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

from must.base import storage
from must.base.background import every
from must.base.exits import line_of

logger = logging.getLogger(__name__)

COPY_EVERY_S = 60.0  # seconds


@contextmanager
def mirrored(folder: str, uri: str, pattern: str = "*tfevents*") -> Iterator[None]:
    """Copies changed files while the block runs, and once more at its end. Does nothing if `uri` is ''.

    A failed copy is only a warning: it must not stop the training.
    """
    if not uri:
        yield
        return
    copy = partial(copy_changed, Path(folder), uri, pattern, {})
    try:
        with every(COPY_EVERY_S, copy):
            yield
    finally:
        copy()


def copy_changed(folder: Path, uri: str, pattern: str, sizes: dict[str, int]) -> None:
    with suppress(FileNotFoundError):
        for path in sorted(folder.rglob(pattern)):
            name, size = str(path.relative_to(folder)), path.stat().st_size
            if sizes.get(name) == size:
                continue
            try:
                storage.write_bytes(storage.join(uri, name), path.read_bytes())
                sizes[name] = size
            except (ValueError, OSError) as error:
                logger.warning(f"must: {uri}: the curves could not be copied: {line_of(error)}")
                return
