"""One rank of several at one place of checkpoints, under torchrun: python -m tests.method.train.shared_place URI FOLDER

What it found goes to a file of its own, FOLDER/rank-0.json: two processes' lines in one pipe may mix.
"""

import hashlib
import json
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist

from must.method.distributed.process_group import World
from must.method.train import checkpoint
from must.method.train.checkpoint import Checkpoints, load_state

if __name__ == "__main__":
    dist.init_process_group("gloo")
    checkpoint.CHECKPOINTS = replace(checkpoint.CHECKPOINTS, patience=0)
    world = World(dist.get_rank(), dist.get_world_size(), torch.device("cpu"))
    checkpoints, line = Checkpoints(sys.argv[1]), {}
    try:
        with (
            checkpoint.exclusive_checkpoints(checkpoints, world),
            checkpoint.newest_checkpoint(checkpoints, world) as path,
        ):
            line["weights"] = hashlib.sha256(load_state(path)["weights"].numpy().tobytes()).hexdigest()
            dist.barrier()
            line["copies"] = len(list(Path(tempfile.gettempdir()).glob("must-*/copy")))
            dist.barrier()
    except ValueError as error:
        line["refused"] = str(error)
    Path(sys.argv[2], f"rank-{world.rank}.json").write_text(json.dumps(line | {"rank": world.rank}))
    dist.destroy_process_group()
