"""The public API: each stage is a function of keyword arguments at `must`, with a typed result."""
