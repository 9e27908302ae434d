"""Classifying images with the exported ONNX file alone: single ones, all of a bucket, or through a server.

Imports format, image, sources and storage: numpy, Pillow and onnxruntime, no torch.
"""
