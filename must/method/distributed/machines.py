"""Which of several machines this is, where the platform starts the same command on each: Vertex AI's CLUSTER_SPEC."""

import os
from dataclasses import dataclass
from typing import Any

from must.base.parameters import require
from must.base.storage import parse_object

CLUSTER_SPEC = "CLUSTER_SPEC"


@dataclass(frozen=True)
class Machines:
    """`number` of `count`; the first one, number 0, can be reached at `address`, which is of the form host:port."""

    number: int = 0
    count: int = 1
    address: str = ""

    @property
    def rendezvous(self) -> list[str]:
        """torchrun's options for the processes of this machine to meet the others."""
        if self.count == 1:
            return ["--standalone"]
        host, _, port = self.address.rpartition(":")
        return [
            f"--nnodes={self.count}",
            f"--node-rank={self.number}",
            f"--master-addr={host}",
            f"--master-port={port}",
        ]


def machines() -> Machines:
    """One machine where CLUSTER_SPEC is not set.

    Its pools are workerpool0, which is the first machine alone, and workerpool1 with the others.

    Raises:
        ValueError: it is something else.
    """
    text = os.environ.get(CLUSTER_SPEC, "")
    if not text:
        return Machines()
    damaged = ValueError(f"{CLUSTER_SPEC}: is not what Vertex AI gives the machines of a CustomJob")
    return parse_object(text, parse, damaged)


def parse(content: dict[str, Any]) -> Machines:
    cluster, task = content["cluster"], content["task"]
    pools = sorted(name for name in cluster if name.startswith("workerpool"))
    before = [address for pool in pools if pool < task["type"] for address in cluster[pool]]
    everyone = [address for pool in pools for address in cluster[pool]]
    found = Machines(len(before) + int(task["index"]), len(everyone), everyone[0])
    whole = task["type"] in pools and found.number < found.count and found.address.rpartition(":")[2].isdigit()
    require(whole, CLUSTER_SPEC)
    return found
