"""`must shard`: images of any source become WebDataset shards with an index.

    list -> shuffled plan of chunks -> chunks in parallel (read, check, pack) -> duplicates -> shards -> index

Memory depends on the number of processes and the size of a chunk only. A run that was killed is resumed: the sources
are listed again, and if the listing and the settings are the same as before, chunks that have a record are skipped.
If several programs share the work (`--part`), each processes some of the chunks, and the last one makes the shards.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from must.base import storage
from must.base.errors import UserError
from must.base.files import INDEX_FILE
from must.base.lock import HeldError, locked
from must.base.parameters import require
from must.base.processes import cores
from must.base.progress import bar
from must.base.text import printable
from must.config import ShardConfig
from must.config.defaults import parse_part
from must.data.format import index
from must.data.format.index import Index
from must.data.shards import commit
from must.data.shards.assemble import Pool
from must.data.shards.commit import Task
from must.data.shards.history import History
from must.data.shards.listing import Chunk, Listing, chunks_of, list_sources, open_sources, settings_json
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
    Returns the index; None: this was one part of the work, and other parts are not done.
    Raises ValueError: nothing to read, no images, more rejected files than allowed, an output that holds other shards
    or that another run is writing, a full disk. The index is then not written; finished chunks are kept for the next
    run if they are of use."""
    refuse_source_in_output(config)
    sources = open_sources(config)
    number, parts = parse_part(config.part)
    with fresh_folder(config.output), ExitStack() as stack:
        if parts > 1:
            check_lock = stack.enter_context(locked_part(config.output, number, parts))
        else:
            check_lock = stack.enter_context(locked(config.output, SHARDS_LOCK))
            refuse_living_parts(config.output)
        work = stack.enter_context(Workdir(config.output, number, parts))
        task = find_work(config, sources, work)
        if isinstance(task, Index):
            if parts == 1:
                work.clear_up_to(task)
            return task
        if parts == 1:
            work.start(task.run)
        elif generation(config) != task.before:
            return index_of_other_part(config)
        else:
            work.claim(task.run, config.run_id)
        chunks = task.chunks[number - 1 :: parts]
        with Pool(max(1, min(config.workers or cores(), len(chunks)))) as pool:
            process(task, chunks, pool, work)
            return finish(task, pool, work, check_lock) if parts == 1 else finish_if_last(task, pool, work)


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
    listing = list_sources(config, sources, history, work.local)
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


def process(task: Task, chunks: list[Chunk], pool: Pool, work: Workdir) -> None:
    """Processes those of the chunks that have no record."""
    done = work.done([chunk.number for chunk in chunks])
    if done:
        logger.info(f"going on with an interrupted run: {len(done)} chunks are done already")
    remaining = [chunk for chunk in chunks if chunk.number not in done]
    rejected = 0
    with bar(total=sum(chunk.files for chunk in remaining), desc="shard", unit="img", smoothing=0.1) as shown:
        for files, more_rejected in pool.process_chunks(remaining, task.config, work):
            rejected += more_rejected
            shown.update(files)
            shown.set_postfix({"rejected": rejected}, refresh=False)


def finish(task: Task, pool: Pool, work: Workdir, check_lock: Callable[[], None]) -> Index:
    """Makes the shards of all chunks' pieces, and the index, which does not change if all new files were rejected."""
    check_lock()
    work.fetch(task.numbers)
    output = task.config.output
    result = commit.commit_shards(task, work, pool)
    if result is task.previous:
        work.clear()
        return nothing_new(task.config, result)
    check_lock()
    work.remove_strays(result.files)
    storage.write_bytes(storage.join(output, INDEX_FILE), result.to_json(), if_generation_match=task.before)
    work.clear()
    return show_index(output)


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
                return finish(task, pool, work, check_lock)
    except HeldError:
        logger.info(f"all {len(task.chunks)} chunks are done, and another part makes the shards of them")
        return None
    storage.delete_folder(work.chunks)
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


def show_index(uri: str) -> Index:
    """Prints images per split, labels, duplicates, rejected files and reasons, and where the index is from."""
    result = index.load_index(uri)
    for name, counts in result.splits.items():
        shards = result.shards_of(name)
        size = f"{len(shards)} shards of {sum(shard.bytes for shard in shards) / 1e6:.1f} MB"
        logger.info(f"  {printable(name)}: {counts['samples']} images, {counts['labelled']} labelled, in {size}")
    if result.labels:
        shown = ", ".join(result.labels[:10]) + (", ..." if len(result.labels) > 10 else "")
        logger.info(f"  labels: {len(result.labels)} ({printable(shown)})")
    if result.duplicates:
        logger.info(f"  duplicates: {result.duplicates}, of which {result.dropped} left out")
    if result.skipped:
        logger.info(f"  other files, not read: {not_read(result.skipped)}")
    if result.rejected:
        logger.info(f"  rejected: {result.rejected}, listed in {storage.join(uri, index.REJECTED)}")
        for reason, count in result.reasons.items():
            logger.info(f"    {count} x {printable(reason)}")
    origin = printable(f"revision {result.revision}, made by {result.created_by} from {result.source['uri']}")
    logger.info(f"index: {storage.join(uri, INDEX_FILE)}, {origin}, sha256 {result.sha256}")
    return result
