"""Classifying images with the exported ONNX file alone, here or through a server.

Imports image, sources and storage: numpy, Pillow and onnxruntime, no torch.
"""
