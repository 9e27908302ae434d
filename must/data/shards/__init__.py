"""Writing shards: images of any source to WebDataset shards with an index, in parallel, again after a kill, and more.

No torch, and nothing of the room that reads shards (must.data.loading).
"""
