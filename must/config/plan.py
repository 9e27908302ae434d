"""Parameters of `must plan`: those of `must train`, and how long to measure."""

from dataclasses import dataclass

from must.base.parameters import param
from must.config.train import TrainConfig


@dataclass(kw_only=True)
class PlanConfig(TrainConfig):
    example = "must plan --shards shards/ --classifier classifier.safetensors"

    output: str = param("accepted as in `must train`; nothing is written", "", metavar="DIR", group="input and output")
    json: str = param("JSON file for the same numbers", "", metavar="FILE", group="the plan", kind="output")
    seconds: float = param("measure steps for about so long, and at least three of them", 20.0, metavar="S", above=0)
    gpu: str = param(
        "calculate the run's time on other GPUs, such as h100x8 or l4; only the loaders are measured",
        "",
        metavar="NAME[xN]",
        often=True,
    )
