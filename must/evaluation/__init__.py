"""Measures a model and its baseline: scores, metrics with intervals, label-free figures, a report.

Of the training it reads only the log in the bundle.
"""
