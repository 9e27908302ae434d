"""Parameters of `must promote`."""

from __future__ import annotations

import re
from dataclasses import dataclass

from must.parameters import StageConfig, flag, param, require


@dataclass(kw_only=True)
class PromoteConfig(StageConfig):
    example = (
        "must promote --model model/ --onnx onnx/ --registry gs://models/registry --name digits\n"
        "  must promote --rollback --registry gs://models/registry --name digits"
    )

    registry: str = param("where promoted models live: a folder or gs://bucket/prefix", metavar="URI")
    name: str = param("the model's name in the registry", metavar="NAME")
    model: str = param("the bundle written by `must train`", "", metavar="DIR")
    onnx: str = param("the folder written by `must export`, to go with it", "", metavar="DIR")
    metrics: str = param("metrics.json of `must evaluate`, to be remembered", "", metavar="FILE")
    decision: str = param("decision of `must gate`; a stopped model is refused", "", metavar="FILE")
    champion: str = param(
        "version this model was compared with, or none; refused if LATEST is another one by now", "", metavar="VERSION"
    )
    version: str = param("the version's name; from the data's revision and the weights if empty", "", metavar="VERSION")
    rollback: bool = param("go back to the champion before", False)
    to: str = param("with --rollback: to this earlier champion", "", metavar="VERSION")
    list: bool = param("show the versions there are", False)

    def check_values(self) -> None:
        require(not (self.rollback and self.list), "--rollback and --list: give one of them")
        require(not self.to or self.rollback, "--to goes with --rollback")
        require(
            self.rollback or self.list or bool(self.model),
            "--model: which bundle is to be promoted is missing (or give --rollback, or --list)",
        )
        for name in ("version", "to"):
            value = getattr(self, name)
            require(
                re.fullmatch(r"[a-z0-9][-a-z0-9._]{0,62}|", value) is not None,
                f"{flag(name)} {value}: small letters, digits, '-', '.' and '_' make a version, at most 63 of them",
            )
