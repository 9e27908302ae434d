"""What the worker processes do: they process chunks and assemble shards."""

from collections.abc import Iterator

from must.base.workers import KilledWorkerError, Workers
from must.data.format.index import Shard
from must.data.image.quiet import silence_pillow
from must.data.shards.assemble import ShardJob, assemble
from must.data.shards.breadcrumbs import files_in_progress, remove_all
from must.data.shards.chunk import Chunk, Done, Settings, process_chunk
from must.data.shards.workdir import Workdir

SHOWN = 8  # files that a killed worker may have been at


class Pool(Workers):
    def __init__(self, workers: int) -> None:
        super().__init__(workers, __name__, silence_pillow)

    def process_chunks(self, chunks: list[Chunk], settings: Settings, work: Workdir) -> Iterator[Done]:
        """Names, of a killed worker, the files that the workers were at."""
        remove_all(work.local)
        try:
            yield from self.unordered(
                process_chunk, [(chunk, settings, work.chunks, work.records, work.local) for chunk in chunks]
            )
        except KilledWorkerError as error:
            names = files_in_progress(work.local)
            if not names:
                raise
            more = f" and {len(names) - SHOWN} others" if len(names) > SHOWN else ""
            raise KilledWorkerError(f"{error}; it was at one of: {', '.join(names[:SHOWN])}{more}") from None

    def assemble(self, jobs: list[ShardJob], work: Workdir) -> list[Shard]:
        """The shards, in the order of `jobs`."""
        made = self.unordered(assemble, [(job, work.records, work.chunks, work.output) for job in jobs])
        found = {shard.name: shard for shard in made}
        return [found[job.name] for job in jobs]
