"""Where images come from before they are in shards: folders, bucket prefixes, manifests, tar and zip archives.

Imports storage alone; sharding and prediction read through it, without torch.
"""
