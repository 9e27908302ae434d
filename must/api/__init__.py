"""The library's face: each stage a function of keyword arguments at `must`, with typed results.

`must.NAME` finds its function here; nothing heavy is imported before one runs.
"""
