"""Headers of image files, a module a family of formats: bytes in, what decoding them will cost out (`Cost`).

Each reads as far as the decoder behind Pillow will, and takes the larger where two of a file's statements differ. What
a format can do and nobody here has counted is refused: `ValueError`, whose text is the reason. No Pillow here.
"""
