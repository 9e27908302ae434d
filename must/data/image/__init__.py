"""Decoding image files to pixels: what is refused, how it is decoded, and a model's own preprocessing.

No torch: training, prediction and a server see the same pixels.
"""
