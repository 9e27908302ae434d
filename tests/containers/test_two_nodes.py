"""Two containers on one network find each other by name and train one model: torchrun and gloo."""

import json
import math

import pytest

from tests.containers.engine import container, engine, image
from tests.containers.test_signals import train

STEPS = {"epochs": 1, "batch-size": 128, "workers": 1, "log-every": 1}


@pytest.fixture
def network(name):
    engine("network", "create", name)
    yield name
    engine("network", "rm", "--force", name, check=False)


def test_two_nodes_train_one_model(prepared, network, name):
    nodes = [f"{name}-{rank}" for rank in range(2)]
    try:
        for rank, node in enumerate(nodes):
            torchrun = ["python", "-m", "must.model.distributed", "--nnodes", "2", "--nproc-per-node", "1"]
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
    both = prepared / "two-nodes"
    assert json.loads((both / "model.json").read_text())["provenance"]["processes"] == 2
    losses = [json.loads(line)["loss"] for line in (both / "train_log.jsonl").read_text().splitlines()]
    assert len(losses) >= 8 and all(map(math.isfinite, losses))
