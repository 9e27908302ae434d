"""Parameters of `must evaluate`."""

from dataclasses import dataclass
from typing import Literal

from must.base.parameters import StageConfig, param
from must.config import defaults


@dataclass(kw_only=True)
class EvaluateConfig(StageConfig):
    example = (
        "must evaluate work/\n"
        "  must evaluate --model model/ --baseline classifier.safetensors --shards shards/ --output report/"
    )

    model: str = defaults.bundle()
    baseline: str = param(
        "what it is compared with: a classifier file (its zero-shot model), or another bundle",
        "",
        metavar="FILE|BUNDLE",
        often=True,
        kind="baseline",
        work="classifier",
    )
    shards: str = defaults.shards()
    index_sha256: str = defaults.index_sha256()
    split: str = param("split to evaluate on", "test", metavar="NAME", often=True, work="split")
    output: str = param(
        "folder for metrics.json, predictions.csv and report.html",
        metavar="URI",
        often=True,
        kind="output",
        work="to report",
    )
    labels: Literal["auto", "ignore"] = param(
        "auto: use the labels there are; ignore: evaluate as if there were none", "auto"
    )
    refined: str = param(
        "folder of `must refine`: the report shows how its labels of the unlabeled images differ from zero-shot's",
        "",
        metavar="URI",
        work="labels",
    )
    risk: float = param(
        "largest share of wrong classes among the images that get a class, from which the abstention threshold follows",
        0.05,
        above=0,
        below=1,
    )
    batch_size: int = defaults.batch_size(group="how it runs")
    workers: int = defaults.workers()
    cache: str = defaults.cache(group="reading shards")
    cache_gb: float = defaults.cache_gb()
    device: str = defaults.device(group="how it runs", often=True)
    timeout: int = param(
        "seconds after which a process that waits for a lost one gives up", 600, metavar="S", at_least=1
    )
