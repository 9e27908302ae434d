"""Images of any source to WebDataset shards with an index, in parallel and resumable."""
