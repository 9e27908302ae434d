"""A heartbeat from each process of a run, so that a lost process is reported by name.

Every process has a thread that writes to torchrun's store (which outlives the processes), and reads the heartbeats of
the others. A process without a new heartbeat for `timeout` seconds is lost. The thread ends the process itself, since
the main thread may hang in a collective, which Python cannot interrupt.
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
SILENCE_S = 5.0  # seconds without a heartbeat that are enough once a collective has failed
EXITED = "left"  # instead of a step: the process exited normally, and reported any error itself


@dataclass
class LastBeat:
    """The last heartbeat of a process, and when it was first read (by this process's monotonic clock)."""

    text: str  # "count step pid host"
    read_at: float

    @property
    def exited(self) -> bool:
        return self.text.split(" ")[1] == EXITED

    def location(self) -> str:
        _, step, pid, host = self.text.split(" ", 3)
        return f"pid {pid} on {host}, last heard of {f'in step {int(step) + 1}' if step else 'before the first step'}"


class Heartbeat:
    """Writes this process's heartbeats and reads those of the others.

    Args:
        store: reachable by all processes, and by no other run.
        timeout: seconds without a heartbeat after which a process is lost, and this one ends.
    """

    def __init__(self, store: Any, rank: int, size: int, timeout: float) -> None:
        self.store, self.rank, self.timeout = store, rank, timeout
        self.interval = min(HEARTBEAT_S, timeout / 8)
        self.others = [str(other) for other in range(size) if other != rank]
        self.step = ""
        self._count = 0
        self._stop = threading.Event()
        self._write()
        self.store.wait(self.others, timedelta(seconds=timeout))
        self.beats = {int(name): LastBeat(text, time.monotonic()) for name, text in self._read().items()}
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)
        self._thread.start()

    def begin(self, step: int) -> None:
        """Call it when step `step` begins; the next heartbeat has its number (the first step's is written at once)."""
        first, self.step = not self.step, str(step)
        if first:
            with suppress(Exception):
                self._write()

    def close(self) -> None:
        """This process exits normally."""
        self._stop.set()
        self._thread.join()
        self.step = EXITED
        with suppress(Exception):  # the store is gone, and with it its readers
            self._write()

    def lost(self, seconds: float) -> list[int]:
        """The processes without a new heartbeat for so many seconds; all, if the store cannot be read."""
        with suppress(Exception):  # of the store's client
            for name, text in self._read().items():
                if text != self.beats[int(name)].text:
                    self.beats[int(name)] = LastBeat(text, time.monotonic())
        now = time.monotonic()
        return [rank for rank, beat in self.beats.items() if not beat.exited and now - beat.read_at > seconds]

    def explain(self) -> str:
        """After a collective failed: a line that names the lost processes; '' if none, EXITED if one exited."""
        self._stop.set()
        self._thread.join()
        seconds = min(SILENCE_S, self.timeout)
        deadline = time.monotonic() + 2 * seconds
        while time.monotonic() < deadline:
            with suppress(Exception):
                self._write()  # so that the others see that this process is alive
            if lost := self._all_lost(seconds):
                return self.line(lost, seconds)
            if any(beat.exited for beat in self.beats.values()):
                return EXITED
            time.sleep(self.interval / 4)
        return ""

    def line(self, ranks: list[int], seconds: float) -> str:
        names = "; ".join(f"rank {rank} ({self.beats[rank].location()})" for rank in ranks)
        return (
            f"{names} is lost: no heartbeat for {seconds:g} s; stopping, run the same command again "
            "(training goes on from its last checkpoint)"
        )

    def _run(self) -> None:
        while not self._stop.wait(self.interval):
            with suppress(Exception):  # an unreachable store: all processes become lost
                self._write()
            if lost := self._all_lost(self.timeout):
                self._end(lost)

    def _all_lost(self, seconds: float) -> list[int]:
        """The lost processes, two beats after the first one, so that several lost at once are reported together."""
        if self.lost(seconds):
            time.sleep(2 * self.interval)
        return self.lost(seconds)

    def _end(self, lost: list[int]) -> None:
        """Ends this process, whose main thread may hang in a collective; the lowest rank logs why."""
        if self.rank < min((rank for rank, beat in self.beats.items() if rank not in lost), default=self.rank + 1):
            logger.warning(f"must: {self.line(lost, self.timeout)}")
        else:
            time.sleep(2 * self.interval)  # torchrun ends all processes when one ends
        os._exit(PREEMPTED)

    def _write(self) -> None:
        self._count += 1
        self.store.set(f"{self.rank}", f"{self._count} {self.step} {os.getpid()} {socket.gethostname()}")

    def _read(self) -> dict[str, str]:
        return dict(zip(self.others, (text.decode() for text in self.store.multi_get(self.others)), strict=True))


def connect_store(timeout: float, purpose: str = "heartbeat") -> Any:
    """A new connection to torchrun's store, with a key prefix of this purpose and this attempt.

    torchrun keeps one store for all attempts of a run, and an attempt must not read the keys of an earlier one.
    """
    store = dist.TCPStore(  # type: ignore[attr-defined]
        os.environ["MASTER_ADDR"],
        int(os.environ["MASTER_PORT"]),
        is_master=False,
        wait_for_workers=False,
        timeout=timedelta(seconds=timeout),
    )
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    return dist.PrefixStore(  # type: ignore[attr-defined]
        f"must/{purpose}/{os.environ.get('TORCHELASTIC_RUN_ID', '')}/{attempt}", store
    )
