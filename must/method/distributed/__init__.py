"""Processes: joining them, stopping them together, naming a lost one, and the settings of a CPU.

The modules of the method that run on several processes use it; it imports none of them.
"""
