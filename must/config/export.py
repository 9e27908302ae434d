"""Parameters of `must export`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from must.parameters import StageConfig, param, require


@dataclass(kw_only=True)
class ExportConfig(StageConfig):
    example = "must export --model model/ --output onnx/"

    model: str = param("the bundle written by `must train`", metavar="BUNDLE")
    output: str = param("folder for model.onnx, labels.txt and the model card", metavar="URI")
    precision: Literal["fp32", "fp16", "int8"] = param("of weights and arithmetic; outputs are float32", "fp32")
    input: Literal["normalized", "uint8"] = param(
        "what the graph takes: float32 [N,3,S,S], normalised, or uint8 [N,S,S,3] pixels that it normalises itself",
        "normalized",
    )
    shards: str = param(
        "shards whose images the export is checked with, and int8 is calibrated on; random pixels without",
        "",
        metavar="URI",
    )
    index_sha256: str = param(
        "refuse --shards whose index has another sha256 (`must index show` prints it); any if empty", "", metavar="HEX"
    )
    split: str = param("split of --shards to take images from", "train", metavar="NAME")
    images: int = param("images of --shards to check and calibrate with", 256, metavar="N")
    min_agreement: float = param(
        "smallest share of images that must get PyTorch's class; 0 means 1 for fp32, 0.99 for fp16, 0.97 for int8", 0.0
    )
    metrics: str = param("metrics.json of `must evaluate`, for the model card", "", metavar="FILE")
    triton: str = param(
        "also write a Triton model repository and a KServe manifest for a model of this name", "", metavar="NAME"
    )

    def check_values(self) -> None:
        require(self.images >= 1, "--images must be at least 1")
        require(0 <= self.min_agreement <= 1, "--min-agreement must lie between 0 and 1")
        require(
            not self.triton or re.fullmatch(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?", self.triton) is not None,
            f"--triton {self.triton}: must be a name that Kubernetes takes: small letters, digits and -, at most 63",
        )
