"""Alpha (weight interpolation), the check of a model without labels, and labels from similar images."""
