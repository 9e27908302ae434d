"""What writing and reading agree on: index.json, tables of offsets, one shard read whole, and whether all are whole.

Imports storage and the checks of foreign names; must.data.shards, must.data and must.predict build on it.
"""
