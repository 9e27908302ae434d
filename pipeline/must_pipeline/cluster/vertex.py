"""The key `vertex` of cluster.yaml."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Vertex:
    project: str = ""
    location: str = ""
    pipeline_root: str = ""
    network: str = ""
    machine: str = ""  # of a CustomJob's nodes
    disk_gb: int = 200
    strategy: Literal["STANDARD", "SPOT", "FLEX_START"] = "STANDARD"
