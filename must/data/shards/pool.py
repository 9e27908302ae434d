"""What the worker processes do: they process chunks and assemble shards."""

from collections.abc import Iterator

from must.base.workers import Job, JobWorkers, KilledWorkerError
from must.data.format.index import Shard
from must.data.image.bounds import fault_of
from must.data.image.quiet import silence_pillow
from must.data.shards.assemble import ShardJob, assemble
from must.data.shards.breadcrumbs import files_in_progress, place_in_progress, remove_all
from must.data.shards.chunk import Chunk, Done, Settings, process_chunk
from must.data.shards.workdir import Workdir

SHOWN = 8  # files that a killed worker may have been at


class Pool(JobWorkers):
    def __init__(self, workers: int) -> None:
        super().__init__(workers, __name__, silence_pillow)

    def process_chunks(self, chunks: list[Chunk], settings: Settings, work: Workdir) -> Iterator[Done]:
        """A file that ends its worker, by its time or by a decoder that fails, is rejected: its chunk is done again.

        Raises:
            KilledWorkerError: another has killed a worker; names the files that the workers were at.
        """
        remove_all(work.local)

        def again(job: Job, exit_code: int | None) -> Job:
            chunk, *others, rejected = job
            place, why = place_in_progress(work.local, chunk.number), fault_of(exit_code, settings.max_pixels)
            if place is None or place in rejected or not why:
                raise KilledWorkerError
            return (chunk, *others, {**rejected, place: why})

        jobs: list[Job] = [(chunk, settings, work.chunks, work.records, work.local, {}) for chunk in chunks]
        try:
            yield from self.unordered(process_chunk, jobs, again)
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
