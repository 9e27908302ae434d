"""Decoding image files to pixels: which files are refused, decoding, and a model's preprocessing.

No torch: training, prediction and the server get the same pixels.
"""
