"""Image files to pixels: which files are refused, decoding, and a model's preprocessing."""
