"""Writing shards: images of any source to WebDataset shards with an index, in parallel, again after a kill, and more.

Imports sources, format and image, and neither torch nor the house that reads shards (must.data).
"""
