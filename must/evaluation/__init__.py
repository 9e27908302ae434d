"""Measures a model beside its baseline: scores, metrics with intervals, label-free figures, a report.

It does not know how a model was trained, beyond the log in its bundle.
"""
