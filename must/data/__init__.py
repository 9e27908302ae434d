"""Images on their way to a model: found, decoded, written as shards, read again, augmented. Knows of no model."""
