"""Sources of images that are not in shards: folders, bucket prefixes, manifests, archives, tables."""
