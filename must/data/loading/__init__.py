"""From shards to batches of samples, in an order that does not depend on the number of processes."""
