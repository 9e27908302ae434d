"""What the model found in a request's images, in the forms that clients ask for. N images, K classes."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from must.base.text import encoded
from must.deploy.serve.models import Served
from must.deploy.serve.protocol import InferRequest, Output, Tensor

DECIMALS = 6  # of a probability in JSON: as `must predict` writes it


@dataclass(frozen=True)
class Predictions:
    """`probability` float32 [N, K], `embedding` float32 [N, D] if it was asked for; `threshold`: 0 names always."""

    classes: list[str]
    probability: np.ndarray
    embedding: np.ndarray | None
    threshold: float
    top_k: int

    @property
    def best(self) -> np.ndarray:
        """Class numbers, int [N, top_k], best first; of equal ones the first, as `must predict` has it."""
        return np.argsort(-self.probability, axis=1, kind="stable")[:, : self.top_k]

    @property
    def abstained(self) -> np.ndarray:
        """Bool [N]: the top probability is below the threshold."""
        return self.probability.max(axis=1) < self.threshold


def tensors(answer: Predictions, asked: InferRequest) -> list[Tensor]:
    """The outputs that were asked for."""
    return [tensor(answer, output) for output in asked.outputs]


def tensor(answer: Predictions, output: Output) -> Tensor:
    images, classes = answer.probability.shape
    if output.name == "class":  # an empty name: none of these
        best = answer.best
        names = [
            b"" if unsure and rank == 0 else encoded(answer.classes[number])
            for row, unsure in zip(best, answer.abstained, strict=True)
            for rank, number in enumerate(row)
        ]
        return Tensor("class", "BYTES", list(best.shape), names)
    if output.name == "top_probability":
        best = answer.best
        return Tensor(output.name, "FP32", list(best.shape), np.take_along_axis(answer.probability, best, axis=1))
    if output.name == "abstained":
        return Tensor(output.name, "BOOL", [images], answer.abstained)
    if output.name == "probability" and output.classification:
        return classification(answer, min(output.classification, classes))
    if output.name == "probability":
        return Tensor(output.name, "FP32", [images, classes], answer.probability)
    assert answer.embedding is not None  # `Work.answer` refuses what the model does not give
    return Tensor(output.name, "FP32", list(answer.embedding.shape), answer.embedding)


def classification(answer: Predictions, count: int) -> Tensor:
    """Triton's classification extension: strings "probability:number:class", best first."""
    best = np.argsort(-answer.probability, axis=1, kind="stable")[:, :count]
    found = [
        encoded(f"{answer.probability[row, number]:f}:{number}:{' '.join(answer.classes[number].split())}")
        for row, numbers in enumerate(best)
        for number in numbers
    ]
    return Tensor("probability", "BYTES", [len(best), count], found)


def to_json(answer: Predictions, row: int) -> dict[str, Any]:
    """One image's answer as plain JSON: class is null where the first probability is below the threshold."""
    best, probability = answer.best[row], answer.probability[row]
    abstained = bool(answer.abstained[row])
    found: dict[str, Any] = {
        "class": None if abstained else answer.classes[best[0]],
        "abstained": abstained,
        **({"threshold": round(answer.threshold, DECIMALS)} if abstained else {}),
        "predictions": [
            {"class": answer.classes[number], "probability": round(float(probability[number]), DECIMALS)}
            for number in best
        ],
    }
    if answer.embedding is not None:
        found["embedding"] = answer.embedding[row].tolist()
    return found


PROTOCOL_EXTENSIONS = ["binary_tensor_data", "classification"]


def tensors_of(served: Served) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """(inputs, outputs) as the protocol describes them; -1 stands for the images, and for top_k."""
    classes = len(served.classifier.classes)
    outputs = [
        {"name": "class", "datatype": "BYTES", "shape": [-1, -1]},
        {"name": "top_probability", "datatype": "FP32", "shape": [-1, -1]},
        {"name": "abstained", "datatype": "BOOL", "shape": [-1]},
        {"name": "probability", "datatype": "FP32", "shape": [-1, classes]},
    ]
    if dimensions := served.classifier.dimensions:
        outputs.append({"name": "embedding", "datatype": "FP32", "shape": [-1, dimensions]})
    return [{"name": "image", "datatype": "BYTES", "shape": [-1]}], outputs


def metadata_of(name: str, served: Served) -> dict[str, Any]:
    inputs, outputs = tensors_of(served)
    size = served.classifier.preprocess.size
    return {
        "name": name,
        "versions": [served.version],
        "platform": "onnxruntime_onnx",
        "inputs": inputs,
        "outputs": outputs,
        "parameters": {"classes": served.classifier.classes, "size": size, "threshold": served.threshold},
    }
