"""Exporting a bundle: ONNX, which needs no PyTorch, or another library's folder; checked, with a model card."""
