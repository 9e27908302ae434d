"""Writing shards: images of any source to WebDataset shards with an index, in parallel and resumable.

Without torch, and independent of the package that reads shards (must.data.loading).
"""
