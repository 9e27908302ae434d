"""Parameters of `must promote`."""

import re
from dataclasses import dataclass

from must.base.parameters import StageConfig, flag, param, require
from must.config import defaults


@dataclass(kw_only=True)
class PromoteConfig(StageConfig):
    example = (
        "must promote work/ --registry gs://models/registry --name digits\n"
        "  must promote --model model/ --onnx onnx/ --registry gs://models/registry --name digits\n"
        "  must promote --rollback --registry gs://models/registry --name digits"
    )

    registry: str = param("where promoted models live: a folder or a bucket's URI", metavar="URI", often=True)
    name: str = param("the model's name in the registry", metavar="NAME", often=True)
    model: str = defaults.bundle("the bundle written by `must train`", "", group="what is promoted", kind="")
    onnx: str = param("the folder written by `must export`, to go with it", "", metavar="DIR", often=True, work="onnx")
    metrics: str = param("metrics.json of `must evaluate`, to be remembered", "", metavar="FILE", work="metrics")
    decision: str = param("decision of `must gate`; a stopped model is refused", "", metavar="FILE", work="decision")
    champion: str = param(
        "version this model was compared with, or none; refused if LATEST is another one by now", "", metavar="VERSION"
    )
    version: str = param(
        "the version's name; if empty, from the data's revision and the weights, and from the ONNX file where these "
        "weights are there with another one",
        "",
        metavar="VERSION",
    )
    rollback: bool = param(
        "go back to the champion before; given again, it changes nothing", False, group="what there is"
    )
    to: str = param("with --rollback: to this earlier champion, also further back", "", metavar="VERSION")
    list: bool = param("show the versions there are", False)

    def check_values(self) -> None:
        require(not (self.rollback and self.list), "--rollback and --list: give one of them")
        require(not self.to or self.rollback, "--to goes with --rollback")
        require(
            self.rollback or self.list or bool(self.model),
            "--model is missing: the bundle to promote (or give --rollback, or --list)",
        )
        for name in ("version", "to"):
            value = getattr(self, name)
            require(
                re.fullmatch(r"[a-z0-9][-a-z0-9._]{0,62}|", value) is not None,
                f"{flag(name)} {value}: use small letters, digits, '-', '.' and '_', at most 63 characters",
            )
