"""Parameters of `must gate`."""

from dataclasses import dataclass
from typing import Literal

from must.base.parameters import StageConfig, param
from must.config import defaults

LABEL_FREE = ("min_agreement", "min_effective_classes")  # `metric` and the other min_* belong to the labelled gate


@dataclass(kw_only=True)
class GateConfig(StageConfig):
    example = "must gate work/\n  must gate --metrics report/metrics.json --gate labelled --output decision.json"

    metrics: str = param("metrics.json of `must evaluate`, with a baseline", metavar="FILE", work="metrics")
    model: str = param(defaults.WORK.removeprefix("or "), "", metavar="WORK", bare=True, work="bundle")
    output: str = param("JSON file for the decision and its reasons", "", metavar="FILE", work="to decision.json")
    gate: Literal["label-free", "reviewed", "labelled", "none"] = param(
        "label-free: the check against zero-shot, which needs no labels, must have no warnings; reviewed: answers of "
        "`must review` must show a gain; labelled: the paired interval of the gain over the baseline on a labelled "
        "split; none: every model passes",
        "label-free",
    )
    min_agreement: float = param(
        "label-free: smallest share of images that keep their class; 0: any", 0.0, between=(0, 1)
    )
    min_effective_classes: float = param(
        "label-free: effective classes, as a share of the baseline's number; 0: any", 0.0, between=(0, 1)
    )
    metric: Literal["top1", "top5", "mean_per_class"] = param("labelled: what must have gained", "top1")
    min_gain: float = param(
        "labelled: the 95% interval's lower end must be above this; 0.01 is a point", 0.0, between=(-1, 1)
    )
    min_images: int = param("labelled: images below which no decision is made", 100, metavar="N", at_least=1)
