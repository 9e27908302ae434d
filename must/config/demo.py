"""Parameters of `must demo`."""

from dataclasses import dataclass

from must.base.parameters import StageConfig, param


@dataclass(kw_only=True)
class DemoConfig(StageConfig):
    example = "must demo --output demo/"

    output: str = param("folder to write to", metavar="DIR")
