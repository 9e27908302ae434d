"""Reading shards, and the order of training: shards to batches, the same for any number of processes.

Imports format, image, augment and storage. Knows nothing of how shards are written (must.data.shards).
"""
