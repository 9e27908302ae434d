"""Parameters of `must select`."""

from __future__ import annotations

from dataclasses import dataclass

from must.base.parameters import StageConfig, param, require
from must.config.defaults import CACHE_GB


@dataclass(kw_only=True)
class SelectConfig(StageConfig):
    example = "must select --model model/ --baseline classifier.safetensors --shards shards/ --output selected/"

    model: str = param("a bundle, from `must train` or trained elsewhere", metavar="BUNDLE")
    baseline: str = param("the classifier file that it was trained with: its zero-shot model", metavar="FILE")
    shards: str = param("folder of shards made by `must shard`; labels are not read", metavar="URI")
    split: str = param("split of unlabeled images to judge by, 20,000 of them at most", "train", metavar="NAME")
    output: str = param("folder for the bundle that is kept", metavar="URI")
    answers: str = param(
        "folder of `must review`: where its answers decide, they say what is kept, and look-alikes do not",
        "",
        metavar="URI",
    )
    batch_size: int = param("images a forward pass", 256, metavar="N")
    workers: int = param("loader processes", 2, metavar="N")
    cache: str = param(
        "folder on this machine's own disk for remote shards; ~/.cache/must/shards if empty", "", metavar="DIR"
    )
    cache_gb: float = param("gigabytes that all runs' shards may take there", CACHE_GB, metavar="GB")
    device: str = param("auto (cuda, else mps, else cpu), cpu, cuda, cuda:N or mps", "auto")

    def check_values(self) -> None:
        require(self.batch_size >= 1, "--batch-size must be at least 1")
        require(self.workers >= 0, "--workers must not be negative")
        require(self.cache_gb > 0, "--cache-gb must be above 0")
