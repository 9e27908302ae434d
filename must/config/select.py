"""Parameters of `must select`."""

from dataclasses import dataclass

from must.base.parameters import StageConfig, param
from must.config import defaults


@dataclass(kw_only=True)
class SelectConfig(StageConfig):
    example = "must select --model model/ --baseline classifier.safetensors --shards shards/ --output selected/"

    model: str = param("a bundle, from `must train` or trained elsewhere", metavar="BUNDLE", kind="bundle")
    baseline: str = param(
        "the classifier file that it was trained with: its zero-shot model", metavar="FILE", kind="classifier"
    )
    shards: str = param("folder of shards made by `must shard`; labels are not read", metavar="URI", kind="shards")
    split: str = param("split of unlabeled images to judge by, 20,000 of them at most", "train", metavar="NAME")
    output: str = param("folder for the bundle that is kept", metavar="URI", kind="output")
    answers: str = param(
        "folder of `must review`: where its answers decide, they say what is kept, and look-alikes do not",
        "",
        metavar="URI",
        kind="answers",
    )
    batch_size: int = defaults.batch_size()
    workers: int = defaults.workers()
    cache: str = defaults.cache()
    cache_gb: float = defaults.cache_gb()
    device: str = defaults.device()
