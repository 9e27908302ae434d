"""Where images come from before they are in shards: folders, bucket prefixes, manifests, archives, tables.

Imports storage and tars alone; sharding and prediction read through it, without torch.
"""
