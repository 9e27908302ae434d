"""From image files to batches: listing, decoding, sharding, reading, augmentation. Independent of the model."""
