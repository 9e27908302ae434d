"""Processes: joining them, stopping them together, naming a lost one, and the settings of a CPU."""
