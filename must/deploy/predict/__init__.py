"""Classifying images with the exported ONNX file alone: single ones, all of a bucket, or through a server.

Numpy, Pillow and onnxruntime; no torch.
"""
