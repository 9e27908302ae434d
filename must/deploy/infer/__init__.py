"""Predicts with the bundle of `must train`, by torch: on a GPU, and without an export.

An ONNX file is handed over to `predict`, which imports no torch; no more does this room until a bundle is named. It may
import `predict`, and what a bundle needs: `model`, `export`'s network, `augment`'s pixels, `distributed`'s device.
"""
