"""`must shard`: images of any source become WebDataset shards with an index.

    list -> shuffled plan of chunks -> chunks in parallel (read, check, pack) -> duplicates -> shards -> index

Memory is bounded by the number of processes and the size of a chunk. A run that was killed goes on where it was: the
listing is made again, and where it and the settings are the same as before, chunks that have a record are not repeated.
Of several programs that share the work (`--part`), each processes some of the chunks, and the last one does the rest.
"""

import logging
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Self

from must.base import storage
from must.base.errors import UserError
from must.base.files import INDEX_FILE
from must.base.lock import HeldError, locked
from must.base.parameters import require
from must.base.processes import cores
from must.base.progress import bar
from must.base.text import printable
from must.config import ShardConfig
from must.config.part import parse_part
from must.data.format import index
from must.data.format.index import Index
from must.data.shards import commit
from must.data.shards.assemble import Pool
from must.data.shards.chunk import Chunk, Done
from must.data.shards.commit import Task
from must.data.shards.history import History
from must.data.shards.listing import Listing, chunks_of, list_sources, open_sources, settings_json, settings_of
from must.data.shards.workdir import (
    RUN_FILE,
    SHARDS_LOCK,
    WORK_FOLDER,
    WRITTEN_NAME,
    Run,
    Workdir,
    locked_part,
    refuse_living_parts,
)
from must.data.sources.base import Source, is_within, no_images, not_read

logger = logging.getLogger(__name__)

Sources = list[tuple[Source, str]]


def shard(config: ShardConfig) -> Index | None:
    """Shards `config.source` (and `config.test_source`) into `config.output`; prints progress and a summary.

    Returns:
        The index; None: this was a part of the work, and other parts still have to do theirs.

    Raises:
        ValueError: nothing to read, no images, more rejected files than allowed, an output that holds other shards or
            that another run is writing, a full disk. The index is then not written, and what was done is kept for a
            next try unless it is worthless.
    """
    apart(config)
    if is_within(config.output, config.source) and not storage.exists(storage.join(config.output, INDEX_FILE)):
        logger.info(
            f"note: the shards will lie among the images of --source {config.source}; a folder beside it is better"
        )
    sources = open_sources(config)
    number, parts = parse_part(config.part)
    with fresh_folder(config.output), ExitStack() as held:
        if parts > 1:
            held.enter_context(locked_part(config.output, number, parts))
            return run_part(config, sources)
        still_ours = held.enter_context(locked(config.output, SHARDS_LOCK))
        refuse_living_parts(config.output)
        return run_alone(config, sources, still_ours)


def run_alone(config: ShardConfig, sources: Sources, still_ours: Callable[[], None]) -> Index:
    """All of the work, or what a killed run or parts have left of it."""
    began = time.monotonic()
    with Workdir(config.output) as work:
        task = find_work(config, sources, work)
        if isinstance(task, Index):
            work.clear_but_later(task)
            return task
        work.start(task.run)
        with Pool(min(config.workers or cores(), len(task.chunks))) as pool:
            read_bytes = process(task, task.chunks, pool, work)
            made = finish(task, pool, work, still_ours)
        print_work("", task.listing.items, time.monotonic() - began, read_bytes)
        return summed_up(task, made)


def run_part(config: ShardConfig, sources: Sources) -> Index | None:
    """This part's share of the chunks; if no other part has left any, the shards too."""
    number, parts = parse_part(config.part)
    began = time.monotonic()
    with Workdir(config.output, number, parts) as work:
        task = find_work(config, sources, work)
        if isinstance(task, Index):
            return task
        if generation(config) != task.before:
            return made_by_another(config)
        work.claim(task.run, config.run_id)
        mine = task.chunks[number - 1 :: parts]
        with Pool(max(1, min(config.workers or cores(), len(mine)))) as pool:
            read_bytes = process(task, mine, pool, work)
            files, seconds = sum(chunk.files for chunk in mine), time.monotonic() - began
            print_work(f"part {number} of {parts}: ", files, seconds, read_bytes)
            return finish_if_last(task, pool, work)


def find_work(config: ShardConfig, sources: Sources, work: Workdir) -> Task | Index:
    """Lists the sources. An index: that is all there is to it, and nothing new.
    Raises ValueError: nothing to read, or shards of something else."""
    before = generation(config)
    previous = existing_index(config)
    if previous is None or config.append:
        try:
            refuse_strangers(config.output, previous)
        except ValueError:
            if generation(config) == before:
                raise
            return find_work(config, sources, work)  # another part has come to the end meanwhile: they are its shards
    history = History(config.output, previous if config.append else None, work.local)
    listing = list_sources(config, sources, history, work)
    if previous and not config.append:
        return same_or_refuse(config, listing, previous)
    if not listing.items:
        if previous is None:
            raise UserError(nothing_found(config, listing))
        return nothing_new(config, previous)
    run = Run(
        config.source,
        config.test_source,
        listing.items,
        listing.key,
        settings_json(config),
        previous.revision + 1 if previous else 0,
    )
    chunks = list(chunks_of(listing, config.samples_per_shard, first=previous.units if previous else 0))
    return Task(config, listing, chunks, previous, history, before, run)


def process(task: Task, chunks: list[Chunk], pool: Pool, work: Workdir) -> int:
    """Processes those of the chunks that have no record; returns the bytes that were read."""
    done = work.done([chunk.number for chunk in chunks])
    with ProgressBar(sum(chunk.files for chunk in chunks), done) as progress:
        left = [chunk for chunk in chunks if chunk.number not in done]
        for chunk in pool.process_chunks(left, settings_of(task.config), work):
            progress.add(chunk)
    return progress.read_bytes


def finish(task: Task, pool: Pool, work: Workdir, still_ours: Callable[[], None]) -> Index:
    """Makes the shards of all chunks' pieces, and the index, which stays as it is if all that is new was rejected."""
    still_ours()
    work.fetch(task.numbers)
    output = task.config.output
    result = commit.commit_shards(task, work, pool)
    if result is task.previous:
        work.clear()
        return result
    still_ours()
    work.remove_strays(result.files)
    storage.write_bytes(storage.join(output, INDEX_FILE), result.to_json(), if_generation_match=task.before)
    work.clear()
    return index.load_index(output)


def summed_up(task: Task, made: Index) -> Index:
    if made is task.previous:
        return nothing_new(task.config, made)
    print_summary(task.config.output, made)
    return made


def finish_if_last(task: Task, pool: Pool, work: Workdir) -> Index | None:
    """Makes the shards if all parts' chunks are done and nobody else is at it."""
    output, done = task.config.output, work.done(task.numbers)
    if len(done) < len(task.chunks) and work.is_of(task.run):
        missing = len(task.chunks) - len(done)
        logger.info(f"{missing} of {len(task.chunks)} chunks are not done; the last part to finish makes the shards")
        return None
    try:
        with locked(output, SHARDS_LOCK) as still_ours:
            if work.is_of(task.run):
                work.tidy()
                return summed_up(task, finish(task, pool, work, still_ours))
    except HeldError:
        logger.info(f"all {len(task.chunks)} chunks are done, and another part makes the shards of them")
        return None
    work.leave()
    return made_by_another(task.config)


def made_by_another(config: ShardConfig) -> Index:
    """The index that another part has come to while this one was at work."""
    found = existing_index(config)
    if found is None:
        raise UserError(f"{config.output}: another run deleted the work of this part; run this part again")
    logger.info(f"{config.output}: another part has made the shards (revision {found.revision})")
    return found


def apart(config: ShardConfig) -> None:
    """Raises ValueError if a source is in the output, which people delete as a whole. The other way round is fine."""
    for option, source in (("--source", config.source), ("--test-source", config.test_source)):
        require(
            not source or not is_within(source, config.output),
            f"{option} {source}: is inside --output {config.output}; shards need a folder of their own",
        )


def refuse_strangers(output: str, previous: Index | None) -> None:
    """Raises ValueError for files that this run would overwrite, or take for its own, and that no run has written."""
    if storage.exists(storage.join(output, WORK_FOLDER, RUN_FILE)):
        return
    known = previous.files if previous else set()
    for entry in storage.list_files(output):
        require(
            entry.name in known or not WRITTEN_NAME.fullmatch(entry.name),
            f"{output} holds {entry.name}, which is not of an index of `must shard` there; choose another --output, or "
            "move the file away",
        )


def generation(config: ShardConfig) -> storage.Generation:
    """That of the index in the output, 0 without one."""
    return storage.generation(storage.join(config.output, INDEX_FILE)) or 0


def existing_index(config: ShardConfig) -> Index | None:
    """The index in the output, if there is one."""
    path = storage.join(config.output, INDEX_FILE)
    if not storage.exists(path):
        return None
    previous = index.load_index(config.output)
    if config.append:
        require(
            not any(shard.file for shard in previous.shards),
            f"--append: {config.output} is an index of another program's shards; choose another --output",
        )
        require(
            previous.settings["resize"] == config.resize,
            f"--append: the images in {config.output} were made with --resize {previous.settings['resize']}; "
            "give the same",
        )
    return previous


def same_or_refuse(config: ShardConfig, listing: Listing, previous: Index) -> Index:
    """A finished run that is started again has nothing to do; shards of something else are not overwritten."""
    same = previous.source["fingerprint"] == listing.fingerprint and previous.settings == settings_json(config)
    require(
        same,
        f"{config.output} already holds shards of other images or settings (from {previous.source['uri']}); "
        "choose another --output, delete the folder, or add to it with --append",
    )
    logger.info(f"{config.output}: these shards are complete already (revision {previous.revision}); nothing to do")
    return previous


def nothing_new(config: ShardConfig, previous: Index) -> Index:
    logger.info(f"{config.output}: nothing new in {config.source}; it stays at revision {previous.revision}")
    return previous


def nothing_found(config: ShardConfig, listing: Listing) -> str:
    where = f"--source {config.source}: "
    if listing.rejected and not listing.skipped:
        name, reason = listing.rejected[0]
        return f"{where}no images that can be read; {name}: {reason}"
    return where + no_images(listing.skipped)


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
    logger.info(f"index: {storage.join(output, INDEX_FILE)}")
