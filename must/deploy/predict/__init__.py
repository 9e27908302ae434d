"""Classifies images with an exported ONNX file: single images, or all images of a folder of shards."""
