"""What writing and reading agree on: index.json, the tables of offsets, and whether a folder of shards is whole.

Imports storage and the checks of foreign names; both must.shards and must.data stand on it.
"""
