"""Runs stages inside a pod: supervises them, uses torchrun for several processes, and records the results."""
