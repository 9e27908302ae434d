"""What the processes of a run share of the checkpoints' place: its lock, and a machine one copy of the newest."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path

import torch
import torch.distributed as dist

from must.lock import CHECKPOINTS, CannotLockError, locked
from must.train.checkpoint import Checkpoints
from must.train.distributed import World


@contextmanager
def alone(checkpoints: Checkpoints, world: World) -> Iterator[None]:
    """While the block lasts no other run writes to the checkpoints' place. The main process holds the lock.

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
        found: list[tuple[str, str] | None] = [None] * world.size
        dist.all_gather_object(found, (machine, str(own or "")) if is_first else None)
        place = dict(filter(None, found))[machine]
        yield Path(place) if place else None
        dist.barrier()  # the others have read it
