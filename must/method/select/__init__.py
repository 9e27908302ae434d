"""The share of an adaptation to keep, the check of a model without labels, and labels from similar images."""
