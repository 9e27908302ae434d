"""Classifies images: `must predict`, with an ONNX file or, by torch, a bundle."""
