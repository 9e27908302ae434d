"""Predicts with a bundle of `must train` in torch: on a GPU, and without an export.

An ONNX file is passed to `predict`, which imports no torch; this folder imports it only for a bundle. It may import
`predict` and the modules that a bundle needs: `model`, `export` (network), `augment` (pixels), `distributed` (device).
"""
