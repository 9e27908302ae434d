"""Signs of life between the processes of a run, so that a lost one is named instead of waited for in silence.

Every process has a thread that writes to the store which torchrun keeps beside the processes (it outlives each of
them), and reads what the others wrote. A process that is killed or frozen falls silent; one that is stuck (a read that
never returns) goes on beating but falls behind: it has not begun the step that the others wait in. The thread acts by
itself, since the main thread may hang in a collective that nothing in Python can interrupt.
"""

import logging
import os
import socket
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Self

import torch.distributed as dist

from must.base.exits import PREEMPTED
from must.base.processes import is_running

logger = logging.getLogger(__name__)

HEARTBEAT_S = 1.0  # seconds between two signs of life
CHECK_S = 5.0  # seconds between two looks at the others'
LEFT = "left"  # instead of a step: the process ended on its own and has said why itself


@dataclass
class RankStatus:
    """The last that was heard of a process, and when (by this process's monotonic clock)."""

    beat: str
    step: str  # the step it is in; "" before the first; or LEFT
    pid: int
    host: str
    heard: float
    moved: float  # when its step last changed

    @classmethod
    def read(cls, text: str, now: float) -> Self:
        beat, step, pid, host = text.split(" ", 3)
        return cls(beat, step, int(pid), host, now, now)

    def update(self, text: str, now: float) -> None:
        new = RankStatus.read(text, now)
        if new.beat != self.beat:
            self.beat, self.heard = new.beat, now
        if new.step != self.step:
            self.step, self.moved = new.step, now

    def where(self) -> str:
        step = f"in step {int(self.step) + 1}" if self.step not in ("", LEFT) else "before the first step"
        return f"pid {self.pid} on {self.host}, last heard of {step}"

    def is_dead(self) -> bool:
        """Whether it is certain that the process ended: only processes of this host can be checked."""
        return self.host == socket.gethostname() and not is_running(self.pid)


class Heartbeat:
    """This process's beats, and its view of the others'.

    Args:
        store: reachable by all processes, and by no other run.
        timeout: seconds of silence or standstill after which a process counts as lost.
        act: whether this process ends when another one is lost (tests look on without ending).
    """

    def __init__(self, store: Any, rank: int, size: int, timeout: float, act: bool = True) -> None:
        self.store, self.rank, self.timeout, self.act = store, rank, timeout, act
        self.beat, self.interval = min(HEARTBEAT_S, timeout / 8), min(CHECK_S, timeout / 4)
        self.others = [other for other in range(size) if other != rank]
        self.step = ""
        self.moved = time.monotonic()
        self._count = 0
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._spoken = False
        self._beat()
        self.store.wait([f"{other}" for other in self.others], timedelta(seconds=timeout))
        now = time.monotonic()
        self.signs = dict(zip(self.others, (RankStatus.read(text, now) for text in self._read()), strict=True))
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)
        self._thread.start()

    def begin(self, step: int) -> None:
        """Call it when step `step` begins: after its data arrived, before the processes wait for each other."""
        first = not self.step
        self.step, self.moved = str(step), time.monotonic()
        if first:
            with suppress(Exception):  # the thread's beats notice whether the store is there
                self._beat()

    def close(self) -> None:
        """This process leaves on its own."""
        self._stop.set()
        self._thread.join()
        self.step = LEFT
        try:
            self._beat()
        except Exception:  # the store is gone, and so are its readers
            return

    def lost(self, patience: float | None = None) -> list[int]:
        """The processes that were silent for `patience` seconds (default: the timeout), or are dead on this host."""
        patience = self.timeout if patience is None else patience
        with self._lock:
            now = time.monotonic()
            for other, text in zip(self.others, self._read(), strict=True):
                self.signs[other].update(text, now)
            return [
                other
                for other, sign in self.signs.items()
                if sign.step != LEFT and (now - sign.heard > patience or sign.is_dead())
            ]

    def stuck(self) -> list[int]:
        """The processes that the others wait for: no step began within the timeout, and these are one behind."""
        now = time.monotonic()
        steps = {self.rank: self.step} | {other: sign.step for other, sign in self.signs.items()}
        moved = max([self.moved, *(sign.moved for sign in self.signs.values())])
        if LEFT in steps.values() or now - moved < self.timeout:
            return []
        numbers = {rank: int(step or -1) for rank, step in steps.items()}
        last = max(numbers.values())
        return [rank for rank, number in numbers.items() if number < last]

    def anyone_left(self) -> bool:
        return any(sign.step == LEFT for sign in self.signs.values())

    def explain(self, patience: float) -> str:
        """Which process is lost, in one line, after a collective failed; '' if none is, LEFT if one has left.

        Looks for as long as it takes to tell silence from a late beat.
        """
        deadline = time.monotonic() + patience + self.interval
        while True:
            try:
                lost = self.lost(patience)
            except Exception:
                return "the processes' common store is gone: the node that torchrun keeps it on is lost"
            if lost:
                return self.line(lost, "is lost: it was killed or hangs")
            if self.anyone_left():
                return LEFT
            if time.monotonic() > deadline:
                return ""
            time.sleep(self.interval / 4)

    def say(self, line: str) -> None:
        """Prints `reason` once: the main thread and this one may find out at the same time."""
        with self._lock:
            spoken, self._spoken = self._spoken, True
        if not spoken:
            logger.warning(f"must: {line}")

    def line(self, ranks: list[int], what: str) -> str:
        places = "; ".join(f"rank {rank} ({self.signs[rank].where()})" for rank in ranks if rank in self.signs)
        return f"{places} {what}; stopping, run the same command again (training goes on from its last checkpoint)"

    def _run(self) -> None:
        reachable = looked = time.monotonic()
        while not self._stop.wait(self.beat):
            try:
                self._beat()
                reachable = time.monotonic()
                if reachable - looked < self.interval:
                    continue
                looked, lost = reachable, self.lost()
            except Exception as error:  # any error of the store's client: it is looked at again, until the timeout
                if time.monotonic() - reachable > self.timeout:
                    self._end(f"the processes' common store cannot be reached any more: {first_line(error)}", [])
                continue
            if lost:
                dead = all(self.signs[rank].is_dead() for rank in lost)
                why = "its process is dead" if dead else f"no sign of life for {self.timeout:g} s"
                self._end(self.line(lost, f"is lost: {why}"), lost)
            elif (stuck := self.stuck()) and self.rank not in stuck:
                self._end(self.line(stuck, f"kept the others waiting for {self.timeout:g} s"), stuck)

    def _end(self, line: str, lost: list[int]) -> None:
        """Ends all processes, for the main thread may be in a collective for ever; one process a host says why."""
        here = socket.gethostname()
        beside = [rank for rank, sign in self.signs.items() if sign.host == here and rank not in lost]
        if not self.act:
            return
        if self.rank <= min(beside, default=self.rank):
            self.say(line)
        else:
            time.sleep(2 * self.interval)  # the end of one is the end of all: torchrun sees to that
        os._exit(PREEMPTED)

    def _beat(self) -> None:
        self._count += 1
        self.store.set(f"{self.rank}", f"{self._count} {self.step} {os.getpid()} {socket.gethostname()}")

    def _read(self) -> list[str]:
        return [value.decode() for value in self.store.multi_get([f"{other}" for other in self.others])]


def connect(timeout: float, purpose: str = "heartbeat") -> Any:
    """A connection of its own to the store of this life of torchrun's processes, for keys of one purpose.

    torchrun keeps one store for all lives of a run: what a life writes there, the next one must not read.
    """
    store = dist.TCPStore(
        os.environ["MASTER_ADDR"],
        int(os.environ["MASTER_PORT"]),
        is_master=False,
        wait_for_workers=False,
        timeout=timedelta(seconds=timeout),
    )
    life = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    return dist.PrefixStore(f"must/{purpose}/{os.environ.get('TORCHELASTIC_RUN_ID', '')}/{life}", store)


def first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
