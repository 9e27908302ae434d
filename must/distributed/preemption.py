"""SIGTERM: this process saves a checkpoint and leaves, and all the others after the same step."""

from __future__ import annotations

import signal
import time

import torch

from must.distributed.process_group import World

SIGNAL_ECHO = 3.0  # seconds in which the same signal may arrive twice: from the terminal, and handed on by torchrun
DUE = 4096  # what the main process adds to the step's sum of stop signals; more than there are processes


class HostCopy:
    """A number on its way from the device to the host."""

    def __init__(self, value: torch.Tensor) -> None:
        self.value, self.arrived = value, None
        if value.is_cuda:
            self.value = torch.empty((), dtype=value.dtype, pin_memory=True).copy_(value, non_blocking=True)
            self.arrived = torch.cuda.Event()
            self.arrived.record()

    def read(self) -> float:
        if self.arrived is not None:
            self.arrived.synchronize()
        return self.value.item()


class StopSignal:
    """Turns SIGTERM and SIGINT into a flag that the training loop reads after each step; a second one kills."""

    def __init__(self) -> None:
        self.received = False
        self._flags: list[HostCopy] = []
        self._since = 0.0
        self._previous = {s: signal.signal(s, self._handle) for s in (signal.SIGTERM, signal.SIGINT)}

    def _handle(self, number: int, _frame: object) -> None:
        if self.received and time.monotonic() - self._since < SIGNAL_ECHO:
            return
        if self.received:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        self.received, self._since = True, time.monotonic()

    def agreed(self, flag: torch.Tensor, world: World, due: bool = False) -> tuple[bool, bool]:
        """Whether all processes leave now, and whether they save a checkpoint.

        Call it after every step, with the step's sum of `received`, and of DUE where the main process wants to save.
        On a GPU the answer is that of the step before, so that the host never waits for the step just queued.
        """
        if world.size == 1:
            return self.received, due
        self._flags.append(HostCopy(flag))
        if len(self._flags) <= (world.device.type == "cuda"):
            return False, False
        total = self._flags.pop(0).read()
        return total % DUE > 0, total >= DUE

    def restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
