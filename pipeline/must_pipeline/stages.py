"""The DAG's stages, a row each: what cluster.yaml may name, and what a task gets because of what it does.

A stage's name is the same in Kubeflow's graph, on the run's page, in cluster.yaml and in what `submit --wait` prints.
"""

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True)
class Stage:
    image: str  # of must_components/images.py; on a GPU it is GPU_IMAGE instead
    # GiB that a pod may have where cluster.yaml says nothing of its memory. ViT-B/16 in float32 with a copy of its
    # weights and a forward batch of 64 took 1.5 (x86-64, PyTorch); ViT-L has three times the weights. `must shard` may
    # take a GB a worker for what it decodes.
    memory: int
    gpu: bool = False  # computes on one, if cluster.yaml's gpu.stages says so
    loaders: bool = False  # PyTorch's loader processes hand tensors over in /dev/shm
    cached: bool = False  # may be answered from Kubeflow's cache; docs/kubeflow.md says why none is
    optional: bool = False  # part of the DAG only if cluster.yaml asks for it
    retried: bool = True  # an exit task that fails again and again would hide what it is about


GPU_IMAGE: Final = "must-train"  # the one with CUDA's torch
LAUNCHER_IMAGE: Final = "must-launcher"  # of train, where it is a TrainJob

STAGES: Final[dict[str, Stage]] = {
    "inputs": Stage("must-torch", 8),
    "shard": Stage("must-shard", 32),
    "classifier": Stage("must-torch", 16, gpu=True),
    "champion": Stage("must-torch", 8),
    "train": Stage("must-train", 48, gpu=True, loaders=True),
    "evaluate": Stage("must-torch", 32, gpu=True, loaders=True),
    "export": Stage("must-torch", 32, loaders=True),
    "gate": Stage("must-torch", 32, gpu=True, loaders=True),
    "promote": Stage("must-shard", 16),
    "review": Stage("must-torch", 32, gpu=True, loaders=True),
    "predict": Stage("must-torch", 32, loaders=True, optional=True),
    "serve": Stage("must-launcher", 4),
    "close": Stage("must-shard", 1),
    "summary": Stage("must-shard", 4, retried=False),
}
ALWAYS: Final = tuple(name for name, row in STAGES.items() if not row.optional)
