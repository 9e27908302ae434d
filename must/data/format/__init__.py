"""The format of shards, for writing and reading: index.json, tables of offsets, reading one shard, verification."""
