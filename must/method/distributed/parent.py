"""Training processes do not outlive the program that started them."""

from __future__ import annotations

import ctypes
import signal
import sys

ENDS_WITH_PARENT = "MUST_ENDS_WITH_PARENT"  # in torchrun's environment: a launcher that is killed takes it along


def end_with_parent() -> None:
    """torchrun's processes are to end with it, however it ends: else they would train on beside those of a retry."""
    if sys.platform == "linux":
        set_signal_of_parents_death = 1  # PR_SET_PDEATHSIG
        ctypes.CDLL(None).prctl(set_signal_of_parents_death, signal.SIGKILL)
