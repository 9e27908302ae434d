"""Measures a model and its baseline: scores, metrics with intervals, label-free figures, a report."""
