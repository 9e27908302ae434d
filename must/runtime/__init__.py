"""Stages inside a pod: supervised, under torchrun where there are several processes, and telling what became of them.

The top floor: components call it, and it may import every room; it needs no torch until a stage does.
"""
