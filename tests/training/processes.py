"""Ranks of a run as real processes, which find each other as those of torchrun do."""

import os
import pickle
import signal
import traceback
import warnings
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import torch
import torch.distributed as dist

from tests.forked import CONTEXT


def on_ranks(world: int, function: Callable[..., Any], *arguments: Any, **values: Any) -> Any:
    """What `function` returns on rank 0 of `world` processes, which find each other as torchrun's do. A thread of
    gloo's own was seen to crash (torch 2.13: gloo_tcp_loop, in malloc; not in 40 further runs of the same test), which
    is no finding about `function`: then they are run once more."""
    # pickled here, as torch would otherwise hand tensors over as open files, and a process can be given 250 of them
    call = pickle.dumps((function, arguments, values))
    codes, answers = run_ranks(world, call)
    if -signal.SIGSEGV in codes:
        warnings.warn(f"a rank crashed, once more: exit codes {codes}", stacklevel=2)
        codes, answers = run_ranks(world, call)
    assert not any(error for _, error in answers), "\n".join(error for _, error in answers)
    return answers[0][0]


def run_ranks(world: int, call: bytes) -> tuple[list[int | None], list[tuple[Any, str]]]:
    """Exit codes of the ranks, and what each returned, or its error."""
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # type: ignore[attr-defined]
    ranks: list[tuple[Any, Connection]] = []
    for rank in range(world):
        receiver, sender = CONTEXT.Pipe(duplex=False)  # one each: they speak at the same time
        arguments_of_rank = (rank, world, store.port, sender, call)
        ranks.append((CONTEXT.Process(target=rank_main, args=arguments_of_rank), receiver))
        ranks[-1][0].start()
        sender.close()
    try:
        answers = [answer(receiver) for _, receiver in ranks]
    finally:
        for process, _ in ranks:
            process.join(30)
            process.kill()
    return [process.exitcode for process, _ in ranks], answers


def answer(receiver: Connection) -> tuple[Any, str]:
    try:
        return pickle.loads(receiver.recv_bytes())
    except EOFError:
        return None, "ended without an answer"


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
