"""`must shard`: images of any source become WebDataset shards with an index.

    list -> shuffled plan of chunks -> chunks in parallel (read, check, pack) -> duplicates -> shards -> index

Memory depends on the number of processes and the size of a chunk only. A run that was killed is resumed: the sources
are listed again, and if the listing and the settings are the same as before, chunks that have a record are skipped.
If several programs share the work (`--part`), each processes some of the chunks, and the last one makes the shards.
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
        The index; None: this was one part of the work, and other parts are not done.

    Raises:
        ValueError: nothing to read, no images, more rejected files than allowed, an output that holds other shards or
            that another run is writing, a full disk. The index is then not written; finished chunks are kept for
            the next run if they are of use.
    """
    refuse_source_in_output(config)
    if is_within(config.output, config.source) and not storage.exists(storage.join(config.output, INDEX_FILE)):
        logger.info(
            f"note: the shards will lie among the images of --source {config.source}; a folder beside it is better"
        )
    sources = open_sources(config)
    number, parts = parse_part(config.part)
    with fresh_folder(config.output), ExitStack() as locks:
        if parts > 1:
            locks.enter_context(locked_part(config.output, number, parts))
            return run_part(config, sources)
        check_lock = locks.enter_context(locked(config.output, SHARDS_LOCK))
        refuse_living_parts(config.output)
        return run_alone(config, sources, check_lock)


def run_alone(config: ShardConfig, sources: Sources, check_lock: Callable[[], None]) -> Index:
    """All of the work, except chunks that a killed run or parts have finished."""
    began = time.monotonic()
    with Workdir(config.output) as work:
        task = find_work(config, sources, work)
        if isinstance(task, Index):
            work.clear_up_to(task)
            return task
        work.start(task.run)
        with Pool(min(config.workers or cores(), len(task.chunks))) as pool:
            read_bytes = process(task, task.chunks, pool, work)
            result = finish(task, pool, work, check_lock)
        print_speed("", task.listing.items, time.monotonic() - began, read_bytes)
        return print_result(task, result)


def run_part(config: ShardConfig, sources: Sources) -> Index | None:
    """Processes this part's share of the chunks; makes the shards if the other parts are done."""
    number, parts = parse_part(config.part)
    began = time.monotonic()
    with Workdir(config.output, number, parts) as work:
        task = find_work(config, sources, work)
        if isinstance(task, Index):
            return task
        if generation(config) != task.before:
            return index_of_other_part(config)
        work.claim(task.run, config.run_id)
        chunks = task.chunks[number - 1 :: parts]
        with Pool(max(1, min(config.workers or cores(), len(chunks)))) as pool:
            read_bytes = process(task, chunks, pool, work)
            files, seconds = sum(chunk.files for chunk in chunks), time.monotonic() - began
            print_speed(f"part {number} of {parts}: ", files, seconds, read_bytes)
            return finish_if_last(task, pool, work)


def find_work(config: ShardConfig, sources: Sources, work: Workdir) -> Task | Index:
    """Lists the sources. Returns the existing index if there is nothing to do.
    Raises ValueError: nothing to read, or the output has shards of another source."""
    before = generation(config)
    previous = existing_index(config)
    if previous is None or config.append:
        try:
            refuse_unknown_files(config.output, previous)
        except ValueError:
            if generation(config) == before:
                raise
            return find_work(config, sources, work)  # another part has just written them, with an index
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
        remaining = [chunk for chunk in chunks if chunk.number not in done]
        for chunk in pool.process_chunks(remaining, settings_of(task.config), work):
            progress.add(chunk)
    return progress.read_bytes


def finish(task: Task, pool: Pool, work: Workdir, check_lock: Callable[[], None]) -> Index:
    """Makes the shards of all chunks' pieces, and the index, which does not change if all new files were rejected."""
    check_lock()
    work.fetch(task.numbers)
    output = task.config.output
    result = commit.commit_shards(task, work, pool)
    if result is task.previous:
        work.clear()
        return result
    check_lock()
    work.remove_strays(result.files)
    storage.write_bytes(storage.join(output, INDEX_FILE), result.to_json(), if_generation_match=task.before)
    work.clear()
    return index.load_index(output)


def print_result(task: Task, result: Index) -> Index:
    if result is task.previous:
        return nothing_new(task.config, result)
    print_summary(task.config.output, result)
    return result


def finish_if_last(task: Task, pool: Pool, work: Workdir) -> Index | None:
    """Makes the shards if the chunks of all parts are done and no other part is making them."""
    output, done = task.config.output, work.done(task.numbers)
    if len(done) < len(task.chunks) and work.is_of(task.run):
        missing = len(task.chunks) - len(done)
        logger.info(f"{missing} of {len(task.chunks)} chunks are not done; the last part to finish makes the shards")
        return None
    try:
        with locked(output, SHARDS_LOCK) as check_lock:
            if work.is_of(task.run):
                work.tidy()
                return print_result(task, finish(task, pool, work, check_lock))
    except HeldError:
        logger.info(f"all {len(task.chunks)} chunks are done, and another part makes the shards of them")
        return None
    work.remove_chunks()
    return index_of_other_part(task.config)


def index_of_other_part(config: ShardConfig) -> Index:
    """The index that another part has written meanwhile."""
    current = existing_index(config)
    if current is None:
        raise UserError(f"{config.output}: another run deleted the work of this part; run this part again")
    logger.info(f"{config.output}: another part has made the shards (revision {current.revision})")
    return current


def refuse_source_in_output(config: ShardConfig) -> None:
    """Raises ValueError if a source is in the output, which users may delete. An output in a source is accepted."""
    for option, source in (("--source", config.source), ("--test-source", config.test_source)):
        require(
            not source or not is_within(source, config.output),
            f"{option} {source}: is inside --output {config.output}; shards need a folder of their own",
        )


def refuse_unknown_files(output: str, previous: Index | None) -> None:
    """Raises ValueError for files with names of shards or tables that are not of the index there."""
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
    """The generation of the index in the output; 0 if there is none."""
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
    """A finished run that is started again has nothing to do; shards of other sources are not overwritten."""
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
    """Removes the output folder again if this run has made it and it is empty."""
    new = not storage.is_remote(output) and not Path(storage.local(output)).exists()
    try:
        yield
    finally:
        if new:
            with suppress(OSError):  # it is not empty: a next run resumes that work
                storage.local(output).rmdir()


LOG_EVERY = 50.0  # seconds between lines without a terminal; shorter than the command line's own interval


class ProgressBar:
    """A bar on a terminal, otherwise a line per minute."""

    def __init__(self, files: int, done: set[int]) -> None:
        self.files, self.processed, self.rejected, self.read_bytes = files, 0, 0, 0
        self.began = self.logged = time.monotonic()
        if done:
            logger.info(f"going on with an interrupted run: {len(done)} chunks are done already")

    def __enter__(self) -> Self:
        self.bar = bar(total=self.files, desc="shard", unit="img", smoothing=0.1)
        return self

    def __exit__(self, *error: object) -> None:
        self.bar.close()

    def add(self, chunk: Done) -> None:
        self.processed += chunk.files
        self.rejected += chunk.rejected
        self.read_bytes += chunk.read_bytes
        self.bar.update(chunk.files)
        self.bar.set_postfix({"rejected": self.rejected}, refresh=False)
        if self.bar.disable and time.monotonic() - self.logged > LOG_EVERY:
            self.logged = time.monotonic()
            rate = self.processed / (self.logged - self.began)
            logger.info(f"{self.processed} of {self.files} files, {rate:.0f} a second, {self.rejected} rejected")


def print_speed(prefix: str, files: int, seconds: float, read_bytes: int) -> None:
    """Prints the files and bytes per second of this program."""
    rates = f"{files / seconds:.0f} a second, {read_bytes / seconds / 1e6:.1f} MB/s"
    logger.info(f"{prefix}{files} files in {seconds:.1f} s ({rates})")


def print_summary(output: str, result: Index, warnings: Iterable[str] = ()) -> None:
    """Prints images per split, duplicates, rejected files and reasons, warnings, and the path of the index."""
    if result.revision:
        logger.info(f"revision {result.revision}:")
    for name, counts in result.splits.items():
        labelled = f", {counts['labelled']} labelled" if counts["labelled"] else ""
        shards = len(result.shards_of(name))
        logger.info(f"  {printable(name)}: {counts['samples']} images{labelled} in {shards} shards")
    if result.duplicates:
        logger.info(f"  duplicates: {result.duplicates}, of which {result.dropped} left out")
    if result.skipped:
        logger.info(f"  other files, not read: {not_read(result.skipped)}")
    if result.rejected:
        logger.info(f"  rejected: {result.rejected}, listed in {storage.join(output, index.REJECTED)}")
        for reason, count in result.reasons.items():
            logger.info(f"    {count} x {printable(reason)}")
    for line in warnings:
        logger.info(f"  warning: {line}")
    logger.info(f"index: {storage.join(output, INDEX_FILE)}")
