"""Where images come from before they are in shards: folders, bucket prefixes, manifests, archives, tables.

Sharding and prediction read through it, without torch.
"""
