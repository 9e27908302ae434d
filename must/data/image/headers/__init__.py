"""Headers of image files, one module per family of formats: each estimates from a file's bytes the cost of decoding it.

A parser reads as far as Pillow's decoder will, and takes the larger value if two parts of a file disagree. A feature of
unknown cost is refused: `ValueError`, whose text is the reason. These modules do not use Pillow.
"""
