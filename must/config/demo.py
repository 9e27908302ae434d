"""Parameters of `must demo`."""

from __future__ import annotations

from dataclasses import dataclass

from must.parameters import StageConfig, param


@dataclass(kw_only=True)
class DemoConfig(StageConfig):
    summary = "Write the bundled data set (handwritten digits), class names and tiny CLIP (computer fonts) to a folder."
    example = "must demo --output demo/"

    output: str = param("folder to write to", metavar="DIR")
