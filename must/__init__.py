"""Adapt CLIP to your own images without labels: masked unsupervised self-training (arXiv 2206.02967)."""

__version__ = "0.1.0"
