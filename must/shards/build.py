"""`must shard`: images of any source become WebDataset shards with an index.

    list -> shuffled plan of units -> units in parallel (read, check, pack) -> duplicates -> shards -> index

Memory is bounded by the number of processes and the size of a unit. A run that was killed goes on where it was: the
listing is made again, and where it and the settings are the same as before, units that have a record are not repeated.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from must import storage
from must.config import ShardConfig
from must.cores import cores
from must.format import index
from must.format.index import Index
from must.lock import SHARDS, locked
from must.parameters import require
from must.shards import commit
from must.shards.history import History
from must.shards.listing import Listing, list_sources, open_sources, settings_json, settings_of, units_of
from must.shards.pool import Pool
from must.shards.progress import Progress, summary
from must.shards.workdir import NAME, RUN, WRITTEN, Work
from must.sources.base import Source, is_within


def shard(config: ShardConfig) -> Index:
    """Shards `config.source` (and `config.test_source`) into `config.output`; prints progress and a summary.

    Raises:
        ValueError: nothing to read, no images, more rejected files than allowed, an output that holds other shards or
            that another run is writing, a full disk. The index is then not written, and what was done is kept for a
            next try unless it is worthless.
    """
    apart(config)
    sources = open_sources(config)
    with fresh_folder(config.output), locked(config.output, SHARDS) as still_ours:
        before = storage.generation(storage.join(config.output, index.NAME)) or 0
        previous = existing_index(config)
        if previous is None or config.append:
            refuse_strangers(config.output, previous)
        with Work(config.output) as work:
            return run(config, sources, previous, work, still_ours, before)


def run(
    config: ShardConfig,
    sources: list[tuple[Source, str]],
    previous: Index | None,
    work: Work,
    still_ours: Any,
    before: int,
) -> Index:
    began = time.monotonic()
    history = History(config.output, previous if config.append else None, work.local)
    listing = list_sources(config, sources, history, work)
    if previous and not config.append:
        return same_or_refuse(config, listing, previous, work)
    if previous and not listing.items:
        return nothing_new(config, previous, work)
    if not listing.items:
        work.clear()
        raise ValueError(nothing_found(config, listing))
    work.start({"key": listing.key, "revision": previous.revision + 1 if previous else 0})

    settings = settings_of(config)
    units = list(units_of(listing, first=previous.units if previous else 0))
    workers = min(config.workers or cores(), len(units))
    with Pool(workers) as pool:
        done = work.done([unit.number for unit in units])
        with Progress(listing.items, done) as progress:
            for unit in pool.do_units([unit for unit in units if unit.number not in done], settings, work):
                progress.add(unit)
        still_ours()
        result = commit.finish(config, settings_json(config), listing, units, previous, history, work, pool)
    if result is previous:
        return nothing_new(config, previous, work)
    still_ours()
    storage.write_bytes(storage.join(config.output, index.NAME), result.to_json(), if_generation_match=before)
    work.clear()
    written = index.load_index(config.output)
    summary(config, written, listing.items + len(listing.rejected), time.monotonic() - began, progress.read_bytes)
    return written


def apart(config: ShardConfig) -> None:
    """Raises ValueError if a source lies in the output, which people delete as a whole. The other way round is fine."""
    for option, source in (("--source", config.source), ("--test-source", config.test_source)):
        require(
            not source or not is_within(source, config.output),
            f"{option} {source}: lies in --output {config.output}; shards need a folder of their own",
        )


def refuse_strangers(output: str, previous: Index | None) -> None:
    """Raises ValueError for files that this run would overwrite, or take for its own, and that no run has written."""
    if storage.exists(storage.join(output, NAME, RUN)):
        return
    known = previous.files if previous else set()
    for entry in storage.list_files(output):
        require(
            entry.name in known or not WRITTEN.fullmatch(entry.name),
            f"{output} holds {entry.name}, which is not of an index of `must shard` there; choose another --output, or "
            "move the file away",
        )


def existing_index(config: ShardConfig) -> Index | None:
    """The index in the output, if there is one."""
    path = storage.join(config.output, index.NAME)
    if not storage.exists(path):
        return None
    previous = index.load_index(config.output)
    if config.append:
        require(
            previous.settings["resize"] == config.resize,
            f"--append: the images in {config.output} were made with --resize {previous.settings['resize']}; "
            "give the same",
        )
    return previous


def same_or_refuse(config: ShardConfig, listing: Listing, previous: Index, work: Work) -> Index:
    """A finished run that is started again has nothing to do; shards of something else are not overwritten."""
    same = previous.source["fingerprint"] == listing.fingerprint and previous.settings == settings_json(config)
    work.clear()
    require(
        same,
        f"{config.output} already holds shards of other images or settings (from {previous.source['uri']}); "
        "choose another --output, delete the folder, or add to it with --append",
    )
    print(f"{config.output}: these shards are complete already (revision {previous.revision}); nothing to do")
    return previous


def nothing_new(config: ShardConfig, previous: Index, work: Work) -> Index:
    work.clear()
    print(f"{config.output}: nothing new in {config.source}; it stays at revision {previous.revision}")
    return previous


def nothing_found(config: ShardConfig, listing: Listing) -> str:
    where = f"--source {config.source}: "
    if listing.skipped:
        kinds = ", ".join(f"{count} {kind}" for kind, count in listing.skipped.items())
        return f"{where}no images, only other files ({kinds}); known endings are .jpg, .png, .webp and the like"
    if listing.rejected:
        name, reason = listing.rejected[0]
        return f"{where}no images that can be read; {name}: {reason}"
    return f"{where}no images in there"


@contextmanager
def fresh_folder(output: str) -> Iterator[None]:
    """Removes the output folder again if it was made by this run and nothing came of it."""
    new = not storage.is_remote(output) and not Path(storage.local(output)).exists()
    try:
        yield
    finally:
        if new:
            with suppress(OSError):  # it is not empty: there is work to go on with
                storage.local(output).rmdir()
