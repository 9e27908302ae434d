"""Exporting a bundle: ONNX, which needs no PyTorch, or another library's folder; checked, with a model card.

Imports model, data (for images to check with) and predict (whose session reads the file).
"""
