"""Runs stages inside a pod: supervises them, uses torchrun for several processes, and records the results.

The highest layer: components call it, and it may import every package. It imports torch only when a stage needs it.
"""
