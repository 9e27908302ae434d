"""What writing and reading agree on: index.json, tables of offsets, one shard read whole, and whether all are whole."""
