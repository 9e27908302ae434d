"""Parameters of `must predict`."""

from __future__ import annotations

from dataclasses import dataclass

from must.parameters import StageConfig, param, require


@dataclass(kw_only=True)
class PredictConfig(StageConfig):
    example = "must predict --model onnx/model.onnx photo.jpg more-photos/"

    model: str = param("model.onnx, or the folder it lies in", metavar="FILE|DIR")
    images: list[str] = param(
        "images, folders or globs; - reads names from standard input", metavar="IMAGE|DIR", positional=True
    )
    top_k: int = param("classes to print for an image", 1, metavar="K")
    batch_size: int = param("images a forward pass", 32, metavar="N")
    output: str = param("CSV or JSONL file to write instead of the table on the terminal", "", metavar="FILE")
    threads: int = param("threads of a forward pass; 0 means one a core", 0, metavar="N")

    def check_values(self) -> None:
        require(self.top_k >= 1, "--top-k must be at least 1")
        require(self.batch_size >= 1, "--batch-size must be at least 1")
        require(self.threads >= 0, "--threads must not be negative")
        require(bool(self.images), "no image given")
        require(
            not self.output or self.output.lower().endswith((".csv", ".jsonl")),
            f"--output {self.output}: the name must end in .csv or .jsonl",
        )
