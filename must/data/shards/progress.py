"""What `must shard` and `must index make` print: progress on the way, a summary at the end."""

import logging
import time
from collections.abc import Iterable
from typing import Self

from must.base import storage
from must.base.progress import bar
from must.base.text import printable
from must.data.format import index
from must.data.format.index import Index
from must.data.shards.chunk import Done
from must.data.sources.base import not_read

logger = logging.getLogger(__name__)

LOG_EVERY = 50.0  # seconds between lines where there is no terminal: before the command line's own


class ProgressBar:
    """A bar on a terminal, a line a minute elsewhere."""

    def __init__(self, files: int, done: set[int]) -> None:
        self.files, self.seen, self.rejected, self.read_bytes = files, 0, 0, 0
        self.began = self.spoke = time.monotonic()
        if done:
            logger.info(f"going on with an interrupted run: {len(done)} chunks are done already")

    def __enter__(self) -> Self:
        self.bar = bar(total=self.files, desc="shard", unit="img", smoothing=0.1)
        return self

    def __exit__(self, *error: object) -> None:
        self.bar.close()

    def add(self, chunk: Done) -> None:
        self.seen += chunk.files
        self.rejected += chunk.rejected
        self.read_bytes += chunk.read_bytes
        self.bar.update(chunk.files)
        self.bar.set_postfix({"rejected": self.rejected}, refresh=False)
        if self.bar.disable and time.monotonic() - self.spoke > LOG_EVERY:
            self.spoke = time.monotonic()
            rate = self.seen / (self.spoke - self.began)
            logger.info(f"{self.seen} of {self.files} files, {rate:.0f} a second, {self.rejected} rejected")


def print_work(what: str, files: int, seconds: float, read_bytes: int) -> None:
    """Prints how fast this program was."""
    rates = f"{files / seconds:.0f} a second, {read_bytes / seconds / 1e6:.1f} MB/s"
    logger.info(f"{what}{files} files in {seconds:.1f} s ({rates})")


def print_summary(output: str, found: Index, warnings: Iterable[str] = ()) -> None:
    """Prints images, splits, what was set aside and why, what is to be minded, and where the index is."""
    if found.revision:
        logger.info(f"revision {found.revision}:")
    for name, counts in found.splits.items():
        labelled = f", {counts['labelled']} labelled" if counts["labelled"] else ""
        logger.info(f"  {printable(name)}: {counts['samples']} images{labelled} in {len(found.shards_of(name))} shards")
    if found.duplicates:
        logger.info(f"  duplicates: {found.duplicates}, of which {found.dropped} left out")
    if found.skipped:
        logger.info(f"  other files, not read: {not_read(found.skipped)}")
    if found.rejected:
        logger.info(f"  rejected: {found.rejected}, listed in {storage.join(output, index.REJECTED)}")
        for reason, count in found.reasons.items():
            logger.info(f"    {count} x {printable(reason)}")
    for line in warnings:
        logger.info(f"  warning: {line}")
    logger.info(f"index: {storage.join(output, index.NAME)}")
