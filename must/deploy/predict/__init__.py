"""Classifies images with an exported ONNX file."""
