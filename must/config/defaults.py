"""Defaults of parameters that several stages have."""

CACHE_GB = 30.0
