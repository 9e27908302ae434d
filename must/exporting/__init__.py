"""Exports a bundle to ONNX, which needs no PyTorch, or to another library's format; with a check and a model card."""
