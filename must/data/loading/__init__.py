"""Reading shards, and the order of training: shards to batches, the same for any number of processes.

It knows nothing of how shards are written (must.data.shards).
"""
