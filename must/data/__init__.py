"""Images to shards to batches. `must.data.shard`, `.index` and `.image` import no torch."""
