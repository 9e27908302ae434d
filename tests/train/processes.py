"""Ranks of a run as real processes, which find each other as those of torchrun do."""

from __future__ import annotations

import os
import pickle
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import torch
import torch.distributed as dist

from tests.forked import CONTEXT


def on_ranks(world: int, function: Callable[..., Any], *arguments: Any, **values: Any) -> Any:
    """What `function` returns on rank 0 of `world` processes, which find each other as torchrun's do."""
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    # pickled here, as torch would otherwise hand tensors over as open files, and a process can be given 250 of them
    call, ranks = pickle.dumps((function, arguments, values)), []
    for rank in range(world):
        receiver, sender = CONTEXT.Pipe(duplex=False)  # one each: they speak at the same time
        arguments_of_rank = (rank, world, store.port, sender, call)
        ranks.append((CONTEXT.Process(target=rank_main, args=arguments_of_rank), receiver))
        ranks[-1][0].start()
        sender.close()
    try:
        answers = [pickle.loads(receiver.recv_bytes()) for _, receiver in ranks]
    finally:
        for process, _ in ranks:
            process.join(30)
            process.kill()
    assert not any(error for _, error in answers), "\n".join(error for _, error in answers)
    return answers[0][0]


def rank_main(rank: int, world: int, port: int, sender: Connection, call: bytes) -> None:
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world}
    store = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_USE_AGENT_STORE": "True"}
    os.environ.update({name: str(value) for name, value in (place | store).items()})
    torch.set_num_threads(1)
    try:
        function, arguments, values = pickle.loads(call)
        result, error = function(*arguments, **values), ""
    except BaseException:
        result, error = None, traceback.format_exc()
    # pickled here, as torch would otherwise hand tensors over in memory that goes with this process
    sender.send_bytes(pickle.dumps((result if rank == 0 else None, error)))
