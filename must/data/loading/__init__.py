"""Reading shards, and the order of samples: from shards to batches, the same for any number of processes.

It is independent of the package that writes shards (must.data.shards).
"""
