"""`must shard`: images of any source become WebDataset shards with an index.

    list -> shuffled plan of chunks -> chunks in parallel (read, check, pack) -> duplicates -> shards -> index

Memory depends on the number of processes and the size of a chunk only. A run that was killed is resumed: the sources
are listed again, and if the listing and the settings are the same as before, chunks that have a record are skipped.
If several programs share the work (`--part`), each ends after its chunks; see workdir.py."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from must.base import storage
from must.base.lock import locked
from must.base.parameters import require
from must.base.processes import Job, KilledWorkerError, Workers, count_cores
from must.base.program import show_bar
from must.base.text import make_printable, pluralize
from must.config import ShardConfig
from must.config.defaults import parse_part
from must.config.work import INDEX_FILE
from must.data import format as index
from must.data.format import NO_INDEX, Index
from must.data.image.limits import describe_exit
from must.data.shards import commit
from must.data.shards.chunk import process_chunk
from must.data.shards.commit import Task
from must.data.shards.listing import (
    Chunk,
    History,
    Listing,
    cut_chunks,
    encode_settings,
    hash_files,
    list_sources,
    open_sources,
)
from must.data.shards.workdir import SHARDS_LOCK, Workdir, join_listings, make_run, read_parts, refuse_strays, work_root
from must.data.sources.files import Source, describe_unread, is_within

logger = logging.getLogger(__name__)

Sources = list[tuple[Source, str]]


def shard(config: ShardConfig) -> Index | None:
    """Shards `config.source` (and `config.test_source`) into `config.output`; prints progress and a summary.
    Returns the index; None: this was one part of the work.
    Raises ValueError: nothing to read, no images, more rejected files than allowed, an output that holds other shards
    or that another run is writing, a full disk. The index is then not written; finished chunks are kept for the next
    run if they are of use."""
    refuse_source_in_output(config)
    sources, root = open_sources(config), work_root(config)
    with (
        fresh_folder(config.output, root),
        locked(root, SHARDS_LOCK) as check_lock,
        Workdir(config.output, root) as work,
    ):
        task = find_work(config, sources, work)
        if isinstance(task, Index):
            work.clear_up_to(task)
            return task
        work.start(task.run)
        workers = max(1, min(config.workers or count_cores(), len(task.numbers)))
        with Workers(workers) as pool:
            process(task, pool, work)
            if root == config.output:
                return finish(task, pool, work, check_lock)
            work.finish_part(task.run, task.numbers, task.listing)
            done = f"part {config.part} is done: {task.listing.items} files"
            logger.info(f"{done}; `must shard` without --part makes the shards")
            return None


def find_work(config: ShardConfig, sources: Sources, work: Workdir) -> Task | Index:
    """Lists the sources, or takes finished parts' listings. Returns the existing index if there is nothing to do."""
    before = storage.find_generation(storage.join(config.output, INDEX_FILE)) or 0
    previous = index.load_index(config.output) if before else NO_INDEX
    if not before or config.append:
        refuse_strays(config.output, previous)
    parts = read_parts(config, previous.sha256) if work.root == config.output else []
    history = History(config.output, previous if config.append else NO_INDEX)
    if before and not config.append:
        return check_same(config, list_sources(config, sources, history, work.local), previous)
    work.first = previous.chunks
    chunks: list[Chunk] = []
    if parts:
        work.use_parts(len(parts))
        listing, numbers = join_listings(parts), sorted(number for part in parts for number in part.numbers)
    else:
        listing = list_sources(config, sources, history, work.local)
        chunks = list(cut_chunks(listing, config.samples_per_shard, work.first, parse_part(config.part)))
        numbers = [chunk.number for chunk in chunks]
    if not listing.items and work.root == config.output:
        return is_nothing_new(config, previous)
    run = make_run(config, previous.sha256, listing.key)
    return Task(config, listing, chunks, numbers, previous, history, before, run)


def process(task: Task, pool: Workers, work: Workdir) -> None:
    """Processes those of the chunks that have no record. If a file ends its worker, by time or a crash, its chunk is
    redone without it.
    Raises KilledWorkerError: something else has killed a worker; names the files that were being processed."""
    done = work.done([chunk.number for chunk in task.chunks])
    if done:
        logger.info(f"going on with an interrupted run: {len(done)} chunks are done already")
    remaining = [chunk for chunk in task.chunks if chunk.number not in done]

    def retry(job: Job, exit_code: int | None, note: bytes) -> Job:
        *others, bad = job
        why, position = describe_exit(exit_code, task.config.max_pixels), int(note.split(b" ")[0] or -1)
        if why and position >= 0 and position not in bad:
            return (*others, {**bad, position: why})
        names = [text.partition(b" ")[2].decode("utf-8", "surrogateescape") for text in pool.notes()]
        raise KilledWorkerError(f"; it was at one of: {', '.join(sorted(names))}" if names else "")

    jobs: list[Job] = [(chunk, task.config, work, {}) for chunk in remaining]
    rejected = 0
    with show_bar(total=sum(chunk.files for chunk in remaining), desc="shard", unit="img", smoothing=0.1) as shown:
        for files, more_rejected in pool.run(process_chunk, jobs, retry):
            rejected += more_rejected
            shown.update(files)
            shown.set_postfix({"rejected": rejected}, refresh=False)


def finish(task: Task, pool: Workers, work: Workdir, check_lock: Callable[[], None]) -> Index:
    """Makes the shards of all chunks' tars, and the index, which does not change if nothing is new."""
    check_lock()
    work.fetch(task.numbers)
    output = task.config.output
    result = commit.commit_shards(task, work, pool)
    if result is task.previous:
        work.clear()
        return is_nothing_new(task.config, result)
    check_lock()
    work.remove_strays(result.files)
    storage.write_bytes(storage.join(output, INDEX_FILE), result.to_json(), if_generation_match=task.before)
    work.clear()
    return show_index(output)


def refuse_source_in_output(config: ShardConfig) -> None:
    """Raises ValueError if a source is in the output, which users may delete. An output in a source is accepted."""
    for option, source in (("--source", config.source), ("--test-source", config.test_source)):
        require(
            not source or not is_within(source, config.output),
            f"{option} {source}: is inside --output {config.output}; shards need a folder of their own",
        )


def check_same(config: ShardConfig, listing: Listing, previous: Index) -> Index:
    """A finished run that is started again has nothing to do; shards of other sources are not overwritten."""
    same = previous.source["fingerprint"] == hash_files(listing.totals) and previous.settings == encode_settings(config)
    require(
        same,
        f"{config.output} already holds shards of other images or settings (from {previous.source['uri']}); "
        "choose another --output, delete the folder, or add to it with --append",
    )
    logger.info(f"{config.output}: these shards are complete already (revision {previous.revision}); nothing to do")
    return previous


def is_nothing_new(config: ShardConfig, previous: Index) -> Index:
    logger.info(f"{config.output}: nothing new in {config.source}; it stays at revision {previous.revision}")
    return previous


@contextmanager
def fresh_folder(output: str, root: str) -> Iterator[None]:
    """Removes the output folder again if this run has made it and it is empty; and that of a part, if it is empty."""
    new = not storage.is_remote(output) and not Path(storage.local(output)).exists()
    try:
        yield
    finally:
        if not storage.is_remote(output):
            folders = [] if root == output else [storage.local(root), storage.local(root).parent]
            with suppress(OSError):  # one is not empty: a next run resumes that work
                for folder in [*folders, storage.local(output)] if new else folders:
                    folder.rmdir()


def show_index(uri: str) -> Index:
    """Prints images per split, labels, duplicates, rejected files and reasons, and where the index is from."""
    result = index.load_index(uri)
    for name, counts in result.splits.items():
        shards = result.list_shards(name)
        size = f"{len(shards)} shards of {sum(shard.bytes for shard in shards) / 1e6:.1f} MB"
        logger.info(f"  {make_printable(name)}: {counts['samples']} images, {counts['labelled']} labelled, in {size}")
    if result.labels:
        shown = ", ".join(result.labels[:10]) + (", ..." if len(result.labels) > 10 else "")
        logger.info(f"  labels: {len(result.labels)} ({make_printable(shown)})")
    if result.duplicates:
        pictures = sum(counts["samples"] for counts in result.splits.values()) + result.dropped - result.duplicates
        left_out = f", {result.dropped} left out" if result.dropped else ""
        copies = "1 copy" if result.duplicates == 1 else f"{result.duplicates:,} copies"
        logger.info(f"  {pluralize(pictures, 'picture')}, {copies}{left_out}")
    if result.levels:
        black, white = result.levels
        logger.info(f"  images of more than 8 bits: {black:g} becomes black, {white:g} white")
    if result.tones:
        tones = ", ".join(f"{count} almost {tone}" for tone, count in result.tones.items())
        logger.info(f"  hardly anything to see: {pluralize(sum(result.tones.values()), 'image')} ({tones})")
    if result.skipped:
        logger.info(f"  other files, not read: {describe_unread(result.skipped)}")
    if result.rejected:
        logger.info(f"  rejected: {result.rejected}, listed in {storage.join(uri, index.REJECTED)}")
        for reason, count in result.reasons.items():
            logger.info(f"    {count} x {make_printable(reason)}")
    origin = make_printable(f"revision {result.revision}, made by {result.created_by} from {result.source['uri']}")
    logger.info(f"index: {storage.join(uri, INDEX_FILE)}, {origin}, sha256 {result.sha256}")
    return result
