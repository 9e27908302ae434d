"""Parameters of `must evaluate` and `must gate`."""

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

    model: str = defaults.bundle("the bundle written by `must train`")
    baseline: str = param(
        "what it is compared with: a classifier file (its zero-shot model), or another bundle",
        "",
        metavar="FILE|BUNDLE",
        often=True,
        kind="baseline",
        work="classifier",
    )
    shards: str = defaults.shards(work="measured")
    index_sha256: str = defaults.index_sha256()
    split: str = param("split to evaluate on", "test", metavar="NAME", often=True, work="split")
    output: str = param(
        "folder of metrics.json, predictions.csv, report.html",
        metavar="URI",
        often=True,
        kind="output",
        work="to report",
    )
    labels: Literal["auto", "ignore"] = param(
        "auto: use the labels there are; ignore: evaluate as if there were none", "auto"
    )
    refined: str = param(
        "folder of `must refine`, whose labels the report compares with zero-shot's",
        "",
        metavar="URI",
        kind="refined",
        work="labels",
    )
    risk: float = param(
        "largest share of wrong classes among classified images, for the abstention threshold",
        defaults.RISK,
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


@dataclass(kw_only=True)
class GateConfig(StageConfig):
    example = "must gate work/\n  must gate --metrics report/metrics.json --gate labelled --output decision.json"

    metrics: str = param("metrics.json of `must evaluate`, with a baseline", metavar="FILE", work="metrics")
    model: str = param(defaults.WORK.removeprefix("or "), "", metavar="WORK", bare=True, work="bundle")
    output: str = param("JSON file for the decision and its reasons", "", metavar="FILE", work="to decision.json")
    gate: Literal["auto", "labelled", "label-free", "none"] = param(
        "auto: labelled if there are --min-images labelled images, else the answers of `must review` if 50 or more "
        "were drawn at random, else label-free; labelled: the paired interval of the gain over the baseline on a "
        "labelled split; label-free: a model that collapsed is stopped; none: every model passes",
        "auto",
    )
    metric: Literal["top1", "top5", "mean_per_class"] = param("labelled: what must have gained", "top1")
    min_gain: float = param(
        "labelled: the 95% interval's lower end must be above this; 0.01 is a point", 0.0, between=(-1, 1)
    )
    min_images: int = param("labelled: images below which no decision is made", 100, at_least=1)
