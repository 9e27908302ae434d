"""Predicts with a bundle of `must train` in torch: on a GPU, and without an export."""
