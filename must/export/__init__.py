"""From a bundle to a file that needs no PyTorch: ONNX, checked against it, with a model card and a server's files.

Imports model, data (for images to check with) and predict (whose session reads the file).
"""
