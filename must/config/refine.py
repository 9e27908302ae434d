"""Parameters of `must refine`."""

from __future__ import annotations

from dataclasses import dataclass

from must.base.parameters import StageConfig, param, require
from must.config.defaults import CACHE_GB


@dataclass(kw_only=True)
class RefineConfig(StageConfig):
    summary = "Make zero-shot better in seconds, without training: images that look alike correct each other's classes."
    example = "must refine --shards shards/ --classifier classifier.safetensors --output refined/"

    shards: str = param("folder of shards made by `must shard`; labels are not read", metavar="URI")
    index_sha256: str = param(
        "refuse shards whose index has another sha256 (`must index show` prints it); any if empty", "", metavar="HEX"
    )
    classifier: str = param("classifier file made by `must classifier`; it names the model", metavar="FILE")
    split: str = param("split of unlabeled images", "train", metavar="NAME")
    output: str = param("folder for predictions.csv, classifier.safetensors and refined.json", metavar="URI")
    images: int = param(
        "images to look at, evenly spread over the split, at most; the time grows with the square of it",
        20_000,
        metavar="N",
    )
    batch_size: int = param("images a forward pass", 256, metavar="N")
    workers: int = param("loader processes", 2, metavar="N")
    cache: str = param(
        "folder on this machine's own disk for remote shards; ~/.cache/must/shards if empty", "", metavar="DIR"
    )
    cache_gb: float = param("gigabytes that all runs' shards may take there", CACHE_GB, metavar="GB")
    device: str = param("auto (cuda, else mps, else cpu), cpu, cuda, cuda:N or mps", "auto")

    def check_values(self) -> None:
        require(self.images >= 1, "--images must be at least 1")
        require(self.batch_size >= 1, "--batch-size must be at least 1")
        require(self.workers >= 0, "--workers must not be negative")
        require(self.cache_gb > 0, "--cache-gb must be above 0")
