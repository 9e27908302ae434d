"""Parameters of `must refine`."""

from __future__ import annotations

from dataclasses import dataclass

from must.base.parameters import StageConfig, param
from must.config.defaults import CACHE_GB


@dataclass(kw_only=True)
class RefineConfig(StageConfig):
    summary = "Make zero-shot better in seconds, without training: images that look alike correct each other's classes."
    example = "must refine --shards shards/ --classifier classifier.safetensors --output refined/"

    shards: str = param("folder of shards made by `must shard`; labels are not read", metavar="URI", kind="shards")
    index_sha256: str = param(
        "refuse shards whose index has another sha256 (`must index show` prints it); any if empty", "", metavar="HEX"
    )
    classifier: str = param(
        "classifier file made by `must classifier`; it names the model", metavar="FILE", kind="classifier"
    )
    split: str = param("split of unlabeled images", "train", metavar="NAME")
    output: str = param(
        "folder for predictions.csv, classifier.safetensors and refined.json", metavar="URI", kind="output"
    )
    images: int = param(
        "images to look at, evenly spread over the split, at most; the time grows with the square of it",
        20_000,
        metavar="N",
        at_least=1,
    )
    batch_size: int = param("images a forward pass", 256, metavar="N", at_least=1)
    workers: int = param("loader processes", 2, metavar="N", at_least=0)
    cache: str = param(
        "folder on this machine's own disk for remote shards; ~/.cache/must/shards if empty", "", metavar="DIR"
    )
    cache_gb: float = param("gigabytes that all runs' shards may take there", CACHE_GB, metavar="GB", above=0)
    device: str = param("auto (cuda, else mps, else cpu), cpu, cuda, cuda:N or mps", "auto")
