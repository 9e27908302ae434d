"""The public API: each stage is a function of keyword arguments at `must`, with a typed result.

`must.NAME` is made here; large packages are imported only when a stage runs.
"""
