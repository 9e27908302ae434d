"""SIGTERM to one process: all processes save a checkpoint after the same step, and exit with code 75.

This module has the handler and the agreement between processes; `must/method/train/trainer.py` saves and raises.
"""

import signal
import time

import torch
import torch.distributed as dist

from must.base.exits import PREEMPTED, answers_signals
from must.method.distributed.process_group import World

SIGNAL_ECHO = 3.0  # seconds in which the same signal may arrive twice: from the terminal and from torchrun


class Preempted(SystemExit):
    """Stopped, with a checkpoint to resume from; exits with the code for 'run the same again'."""

    def __init__(self, reason: str = "stopped by a signal") -> None:
        super().__init__(PREEMPTED)
        self.reason = reason


class StopSignal:
    """Turns SIGTERM and SIGINT into a flag that the training loop reads after each step; a second one kills.

    Only in the main thread of a must program (`must.base.exits`): other programs handle signals themselves.
    """

    def __init__(self) -> None:
        self.received = False
        self._sums: list[AsyncHostCopy] = []
        self._since = 0.0
        handled = (signal.SIGTERM, signal.SIGINT) if answers_signals() else ()
        self._previous = {number: signal.signal(number, self._handle) for number in handled}

    def _handle(self, number: int, _frame: object) -> None:
        if self.received and time.monotonic() - self._since < SIGNAL_ECHO:
            return
        if self.received:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        self.received, self._since = True, time.monotonic()

    def agreed(self, world: World, due: bool = False) -> tuple[bool, bool]:
        """Whether all processes stop now, and whether they save a checkpoint: one all-reduce of two numbers.

        Every process calls it after every step. On a GPU the result is that of the previous step, so that the host
        never waits for the step just queued.
        `due`: this process wants a checkpoint; one process is enough."""
        if world.size == 1:
            return self.received, due
        requests = torch.tensor([self.received, due], dtype=torch.float32, device=world.device)
        dist.all_reduce(requests)
        self._sums.append(AsyncHostCopy(requests))
        if len(self._sums) <= (world.device.type == "cuda"):
            return False, False
        stop, save = self._sums.pop(0).read()
        return stop > 0, save > 0

    def restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)


class AsyncHostCopy:
    """Copies numbers from the device to the host without blocking; `read` waits for them."""

    def __init__(self, values: torch.Tensor) -> None:
        self.values, self.arrived = values, None
        if values.is_cuda:
            self.values = torch.empty(values.shape, dtype=values.dtype, pin_memory=True).copy_(
                values, non_blocking=True
            )
            self.arrived = torch.cuda.Event()
            self.arrived.record()

    def read(self) -> list[float]:
        if self.arrived is not None:
            self.arrived.synchronize()
        return self.values.tolist()
