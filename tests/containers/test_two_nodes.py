"""Two containers on one network, torchrun and gloo: the model of one process with the same global batch."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.containers.engine import container, engine, image, run
from tests.containers.test_signals import train

STEPS = {"epochs": 1, "batch-size": 128, "workers": 1, "log-every": 1}


@pytest.fixture
def network(name):
    engine("network", "create", name)
    yield name
    engine("network", "rm", "--force", name, check=False)


def test_two_nodes_are_one_process_with_the_global_batch(prepared, network, name, record_property):
    nodes = [f"{name}-{rank}" for rank in range(2)]
    try:
        for rank, node in enumerate(nodes):
            torchrun = ["python", "-m", "must.method.distributed.torchrun", "--nnodes", "2", "--nproc-per-node", "1"]
            torchrun += ["--node-rank", str(rank)]
            torchrun += ["--master-addr", nodes[0], "--master-port", "29500", "-m", *train("/data/two-nodes", **STEPS)]
            options = ["--detach", "--name", node, "--hostname", node, "--network", network]
            engine("run", *options, *container(prepared), image("must-train"), *torchrun)
        for node in nodes:
            code = engine("wait", node, timeout=1500).stdout.strip()
            log = engine("logs", node)
            assert code == "0", log.stdout + log.stderr
    finally:
        engine("rm", "--force", *nodes, check=False)
    run("must-train", *train("/data/one-process", **STEPS), data=prepared)
    both, one = (prepared / place for place in ("two-nodes", "one-process"))
    assert json.loads((both / "model.json").read_text())["provenance"]["processes"] == 2
    ours, theirs, start = (load_file(f) for f in (
        both / "model.safetensors", one / "model.safetensors", prepared / "model" / "open_clip_model.safetensors"
    ))  # fmt: skip
    difference, moved = 0.0, 0.0
    for key, value in theirs.items():
        if key.endswith("in_proj_bias"):  # its key part has no gradient but rounding
            continue
        difference += float(np.square(ours[key].astype(np.float64) - value).sum())
        if key in start and start[key].shape == value.shape:
            moved += float(np.square(start[key].astype(np.float64) - value).sum())
    size = sum(float(np.square(value.astype(np.float64)).sum()) for value in theirs.values())
    record_property("relative deviation", (difference / size) ** 0.5)
    assert (difference / size) ** 0.5 < 1e-4
    losses = [
        [json.loads(line)["loss_self_training"] for line in (place / "train_log.jsonl").read_text().splitlines()]
        for place in (both, one)
    ]
    assert len(losses[0]) == len(losses[1]) >= 8
    assert losses[0] == pytest.approx(losses[1], abs=2e-3)
