"""Parameters of `must export` and `must promote`."""

import re
from dataclasses import dataclass
from typing import Literal

from must.base.parameters import StageConfig, flag, param, require
from must.config import defaults


@dataclass(kw_only=True)
class ExportConfig(StageConfig):
    example = (
        "must export work/\n"
        "  must export --model model/ --output onnx/\n"
        "  must export --model model/ --output ours/ --to open_clip --classifier classifier.safetensors"
    )

    model: str = defaults.bundle("the bundle written by `must train`")
    output: str = defaults.output("folder for the exported model and its card", "{to}")
    to: Literal["onnx", "open_clip"] = param(
        "what reads it: any ONNX runtime, or open_clip's own code, without this library", "onnx", often=True
    )
    classifier: str = defaults.classifier("for open_clip: the classifier file of the training", "")
    license: str = param(
        "licence for the model card, by the hub's short name (mit, apache-2.0)", "", metavar="ID", group="model card"
    )
    precision: Literal["fp32", "int8"] = param("of weights and arithmetic; outputs are float32", "fp32", group="ONNX")
    input: Literal["normalized", "uint8"] = param(
        "what the graph takes: float32 [N,3,S,S], normalised; or uint8 [N,S,S,3], which it normalises", "normalized"
    )
    embeddings: bool = param(
        "the graph also returns each image's embedding: `embedding`, float32 [N,D] of length 1, from which the classes "
        "are computed; for your own searches of similar images",
        False,
    )
    shards: str = param(
        "shards whose images the export is checked with, and int8 is calibrated on; random pixels without",
        "",
        metavar="URI",
        group="images to check with",
        often=True,
        kind="shards",
        work="shards",
    )
    index_sha256: str = defaults.index_sha256("--shards")
    split: str = param("split of --shards to take images from", "train", metavar="NAME")
    limit: int = param("images of --shards to check and calibrate with", 256, at_least=1)
    min_agreement: float = param(
        "smallest share of images that must get PyTorch's class; 0 means 1 for fp32, 0.97 for int8", 0.0, between=(0, 1)
    )
    metrics: str = param(
        "metrics.json of `must evaluate`, for the model card",
        "",
        metavar="FILE",
        group="model card",
        often=True,
        kind="metrics",
        work="own metrics",
    )

    def check_values(self) -> None:
        for name in ("precision", "input", "embeddings", "min_agreement"):
            changed = getattr(self, name) != type(self).__dataclass_fields__[name].default
            require(self.to == "onnx" or not changed, f"{flag(name)} goes with --to onnx, not with --to {self.to}")
        require(
            self.to == "onnx" or bool(self.classifier),
            f"--to {self.to}: --classifier is missing: the classifier file that the model was trained from, whose text "
            "tower goes along",
        )
        require(
            re.fullmatch(r"[a-z0-9][a-z0-9.+-]{0,63}|", self.license) is not None,
            f"--license {self.license[:40]}: expected a short name of the hub's, such as mit or apache-2.0",
        )


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
        "the version's name; if empty, from the data's revision and the weights",
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
