"""Decoding image files to pixels: what is refused, how it is decoded, and a model's own preprocessing.

Imports no other room but text, and no torch: training, prediction and a server see the same pixels.
"""
