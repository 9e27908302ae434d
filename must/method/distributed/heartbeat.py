"""A heartbeat from each process of a run, so that a lost one is named instead of waited for in silence.

Every process has a thread that writes to the store which torchrun keeps beside the processes (it outlives each of
them), and reads what the others wrote. One rule: a process of which nothing new was read for `timeout` seconds is lost.
The thread acts by itself, since the main thread may hang in a collective that nothing in Python can interrupt.
"""

import logging
import os
import socket
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch.distributed as dist

from must.base.exits import PREEMPTED

logger = logging.getLogger(__name__)

HEARTBEAT_S = 1.0  # seconds between two heartbeats
SILENCE_S = 5.0  # seconds of silence that are enough once a collective has failed
LEFT = "left"  # instead of a step: the process ended on its own and has said why itself


@dataclass
class Sign:
    """The last text that was read of a process, and when that was new (by this process's monotonic clock)."""

    text: str  # "count step pid host"
    heard: float

    @property
    def left(self) -> bool:
        return self.text.split(" ")[1] == LEFT

    def where(self) -> str:
        _, step, pid, host = self.text.split(" ", 3)
        return f"pid {pid} on {host}, last heard of {f'in step {int(step) + 1}' if step else 'before the first step'}"


class Heartbeat:
    """This process's heartbeats, and its view of the others'.

    Args:
        store: reachable by all processes, and by no other run.
        timeout: seconds of silence after which a process is lost, and this one ends.
    """

    def __init__(self, store: Any, rank: int, size: int, timeout: float) -> None:
        self.store, self.rank, self.timeout = store, rank, timeout
        self.beat = min(HEARTBEAT_S, timeout / 8)
        self.others = [str(other) for other in range(size) if other != rank]
        self.step = ""
        self._count = 0
        self._stop = threading.Event()
        self._write()
        self.store.wait(self.others, timedelta(seconds=timeout))
        self.signs = {int(name): Sign(text, time.monotonic()) for name, text in self._read().items()}
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)
        self._thread.start()

    def begin(self, step: int) -> None:
        """Call it when step `step` begins; the next heartbeat says so (the first step's is written at once)."""
        first, self.step = not self.step, str(step)
        if first:
            with suppress(Exception):
                self._write()

    def close(self) -> None:
        """This process leaves on its own."""
        self._stop.set()
        self._thread.join()
        self.step = LEFT
        with suppress(Exception):  # the store is gone, and so are its readers
            self._write()

    def lost(self, seconds: float) -> list[int]:
        """The processes of which nothing new was read for so long; of all, where the store cannot be read."""
        with suppress(Exception):  # of the store's client
            for name, text in self._read().items():
                if text != self.signs[int(name)].text:
                    self.signs[int(name)] = Sign(text, time.monotonic())
        now = time.monotonic()
        return [rank for rank, sign in self.signs.items() if not sign.left and now - sign.heard > seconds]

    def explain(self) -> str:
        """After a collective failed: which process is lost, in one line; '' if none is, LEFT if one left on its own."""
        self._stop.set()
        self._thread.join()
        seconds = min(SILENCE_S, self.timeout)
        deadline = time.monotonic() + 2 * seconds
        while time.monotonic() < deadline:
            with suppress(Exception):
                self._write()  # the others are to see that this one is there
            if lost := self._together(seconds):
                return self.line(lost, seconds)
            if any(sign.left for sign in self.signs.values()):
                return LEFT
            time.sleep(self.beat / 4)
        return ""

    def line(self, ranks: list[int], seconds: float) -> str:
        named = "; ".join(f"rank {rank} ({self.signs[rank].where()})" for rank in ranks)
        return (
            f"{named} is lost: no heartbeat for {seconds:g} s; stopping, run the same command again "
            "(training goes on from its last checkpoint)"
        )

    def _run(self) -> None:
        while not self._stop.wait(self.beat):
            with suppress(Exception):  # a store that cannot be reached is silence, for all
                self._write()
            if lost := self._together(self.timeout):
                self._end(lost)

    def _together(self, seconds: float) -> list[int]:
        """Those that are lost, two beats after the first: what takes away several does so in the same beat."""
        if self.lost(seconds):
            time.sleep(2 * self.beat)
        return self.lost(seconds)

    def _end(self, lost: list[int]) -> None:
        """Ends all processes, for the main thread may be in a collective for ever; the first of them says why."""
        if self.rank < min((rank for rank, sign in self.signs.items() if rank not in lost), default=self.rank + 1):
            logger.warning(f"must: {self.line(lost, self.timeout)}")
        else:
            time.sleep(2 * self.beat)  # the end of one is the end of all: torchrun sees to that
        os._exit(PREEMPTED)

    def _write(self) -> None:
        self._count += 1
        self.store.set(f"{self.rank}", f"{self._count} {self.step} {os.getpid()} {socket.gethostname()}")

    def _read(self) -> dict[str, str]:
        return dict(zip(self.others, (text.decode() for text in self.store.multi_get(self.others)), strict=True))


def connect_store(timeout: float, purpose: str = "heartbeat") -> Any:
    """A connection of its own to the store of this life of torchrun's processes, for keys of one purpose.

    torchrun keeps one store for all lives of a run: what a life writes there, the next one must not read.
    """
    store = dist.TCPStore(  # type: ignore[attr-defined]
        os.environ["MASTER_ADDR"],
        int(os.environ["MASTER_PORT"]),
        is_master=False,
        wait_for_workers=False,
        timeout=timedelta(seconds=timeout),
    )
    life = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    return dist.PrefixStore(  # type: ignore[attr-defined]
        f"must/{purpose}/{os.environ.get('TORCHELASTIC_RUN_ID', '')}/{life}", store
    )
