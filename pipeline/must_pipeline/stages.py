"""The DAG's stages, one row each: the names that cluster.yaml may use, and each stage's image and needs.

A stage's name is the same in Kubeflow's graph, on the run's page, in cluster.yaml and in the output of `submit --wait`.
"""

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True)
class StageNeeds:
    image: str  # on a GPU it is GPU_IMAGE instead
    # The memory limit in GiB if cluster.yaml sets none. ViT-B/16 in float32 with a copy of its weights and a forward
    # batch of 64 took 1.5 (x86-64, PyTorch); ViT-L has three times the weights. `must shard` may take a GB per worker
    # for decoding.
    memory: int
    gpu: bool = False  # can use a GPU, if cluster.yaml's gpu.stages names it
    loaders: bool = False  # PyTorch's loader processes pass tensors through /dev/shm
    retried: bool = True  # False for the exit task, whose own failures would hide the run's


IMAGES: Final = ("must-shard", "must-torch", "must-train", "must-serve")
GPU_IMAGE: Final = "must-train"  # has torch with CUDA
LAUNCHER_IMAGE: Final = "must-shard"  # of the stage train, if it is a TrainJob

STAGES: Final[dict[str, StageNeeds]] = {
    "inputs": StageNeeds("must-torch", 8),
    "shard": StageNeeds("must-shard", 32),
    "classifier": StageNeeds("must-torch", 16, gpu=True),
    "champion": StageNeeds("must-torch", 8),
    "train": StageNeeds("must-train", 48, gpu=True, loaders=True),
    "evaluate": StageNeeds("must-torch", 32, gpu=True, loaders=True),
    "export": StageNeeds("must-torch", 32, loaders=True),
    "gate": StageNeeds("must-torch", 32, gpu=True, loaders=True),
    "promote": StageNeeds("must-shard", 16),
    "label": StageNeeds("must-serve", 16, gpu=True),
    "close": StageNeeds("must-shard", 1),
    "summary": StageNeeds("must-shard", 4, retried=False),
}
