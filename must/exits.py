"""Exit codes that programs read: wrong input is 2 as everywhere, 1 is a bug."""

PREEMPTED = 75
"""Stopped, or something it needs went away; the work is saved: run the same again (EX_TEMPFAIL of sysexits.h)."""
