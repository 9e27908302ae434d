"""Processes: joining them, stopping them together, naming the lost one, and what a CPU is set to.

Ground floor for all that runs on several of them: imports cores, and no other room.
"""
