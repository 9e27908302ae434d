"""Ranks of a run as real processes, forked from one that has imported torch: importing it takes longer than they do."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import torch
import torch.distributed as dist

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["tests.train.ranks", "tests.train.step_ranks"])


def on_ranks(world: int, function: Callable[..., Any], *arguments: Any, **values: Any) -> Any:
    """What `function` returns on rank 0 of `world` processes, which find each other as torchrun's do."""
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    receiver, sender = CONTEXT.Pipe(duplex=False)
    processes = [
        CONTEXT.Process(target=rank_main, args=(rank, world, store.port, sender, function, arguments, values))
        for rank in range(world)
    ]
    for process in processes:
        process.start()
    sender.close()
    answers = []
    try:
        while len(answers) < world:
            answers.append(pickle.loads(receiver.recv_bytes()))
            assert answers[-1][1] == "", answers[-1][1]
    finally:
        for process in processes:
            if len(answers) < world:
                process.kill()
            process.join()
    assert all(process.exitcode == 0 for process in processes)
    return next(result for result, _ in answers if result is not None)


def rank_main(
    rank: int, world: int, port: int, sender: Connection, function: Callable[..., Any], arguments: Any, values: Any
) -> None:
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world}
    store = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_USE_AGENT_STORE": "True"}
    os.environ.update({name: str(value) for name, value in (place | store).items()})
    torch.set_num_threads(1)
    try:
        result, error = function(*arguments, **values), ""
    except BaseException:
        result, error = None, traceback.format_exc()
    # pickled here, as torch would otherwise hand tensors over in memory that goes with this process
    sender.send_bytes(pickle.dumps((result if rank == 0 else None, error)))
