"""The share of an adaptation to keep, the check of a model without labels, and labels from similar images.

`knn`, `propagate` and `check` are arithmetic; `features` runs the networks; `select` and `refine` are stages.
"""
