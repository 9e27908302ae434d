"""What the processes of a run share of the checkpoints' place: its lock, and a machine one copy of the newest."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path

import torch
import torch.distributed as dist

from must.base.lock import CHECKPOINTS, CannotLockError, locked
from must.method.distributed.process_group import World
from must.method.train.checkpoint import Checkpoints

LONGEST_PATH = 4200  # bytes; Linux allows 4096


@contextmanager
def exclusive_checkpoints(checkpoints: Checkpoints, world: World) -> Iterator[None]:
    """Keeps other runs from writing to the checkpoints while the block lasts. The main process holds the lock.

    Raises:
        ValueError: another run writes there; every process raises.
    """
    with ExitStack() as stack:
        problem: Exception | None = None
        if world.is_main:
            try:
                checkpoints.still_ours = stack.enter_context(locked(checkpoints.uri, CHECKPOINTS))
            except CannotLockError as error:
                print(f"warning: {error}; two runs that write there would not be noticed", file=sys.stderr, flush=True)
            except (ValueError, OSError) as error:
                problem = error
        refused = problem is not None
        if world.size > 1:
            flag = torch.tensor([int(refused)], device=world.device)
            dist.all_reduce(flag)
            refused = bool(flag.item())
        if refused:
            raise problem or ValueError(f"{checkpoints.uri}: the first process could not take this place; it says why")
        yield


@contextmanager
def newest_checkpoint(checkpoints: Checkpoints, world: World) -> Iterator[Path | None]:
    """A local path of the newest whole checkpoint, or None; in every process, for as long as all are in the block.

    Of a remote one each machine's first process makes a copy, which the machine's others read.
    """
    if world.size == 1:
        with checkpoints.newest() as path:
            yield path
        return
    machine, is_first = os.environ.get("GROUP_RANK", "0"), os.environ.get("LOCAL_RANK", "0") == "0"
    with checkpoints.newest() if is_first else nullcontext() as own:
        found = gather_texts(f"{machine}:{own or ''}" if is_first else "", world)
        place = dict(text.split(":", 1) for text in found if text)[machine]
        yield Path(place) if place else None
        dist.barrier()  # the others have read it


def gather_texts(text: str, world: World) -> list[str]:
    """Every process's text. As bytes: torch's own way for objects would unpickle what comes from the network."""
    row = torch.zeros(LONGEST_PATH, dtype=torch.uint8)
    data = os.fsencode(text)
    row[: len(data)] = torch.frombuffer(bytearray(data), dtype=torch.uint8) if data else row[:0]
    rows = [torch.empty_like(row, device=world.device) for _ in range(world.size)]
    dist.all_gather(rows, row.to(world.device))
    return [os.fsdecode(bytes(row.tolist()).rstrip(b"\0")) for row in rows]
