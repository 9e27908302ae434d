"""A request's predictions, in the formats that clients can request. N images, K classes."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from must.base.text import encoded
from must.deploy.serve.models import ServedModel
from must.deploy.serve.protocol import Output, Tensor

DECIMALS = 6  # of a probability in JSON, as in `must predict`


@dataclass(frozen=True)
class Predictions:
    """`probability` float32 [N, K], `threshold` 0: never abstains."""

    classes: list[str]
    probability: np.ndarray
    threshold: float
    top_k: int

    @property
    def best(self) -> np.ndarray:
        """Class numbers, int [N, top_k], best first; ties in the order of the classes, as in `must predict`."""
        return np.argsort(-self.probability, axis=1, kind="stable")[:, : self.top_k]

    @property
    def abstained(self) -> np.ndarray:
        """Bool [N]: the top probability is below the threshold."""
        return self.probability.max(axis=1) < self.threshold


def tensor(predictions: Predictions, output: Output) -> Tensor:
    images, classes = predictions.probability.shape
    if output.name == "class":  # an empty name: the model abstained
        best = predictions.best
        names = [
            b"" if unsure and rank == 0 else encoded(predictions.classes[number])
            for row, unsure in zip(best, predictions.abstained, strict=True)
            for rank, number in enumerate(row)
        ]
        return Tensor("class", "BYTES", list(best.shape), names)
    if output.name == "top_probability":
        best = predictions.best
        return Tensor(output.name, "FP32", list(best.shape), np.take_along_axis(predictions.probability, best, axis=1))
    if output.name == "abstained":
        return Tensor(output.name, "BOOL", [images], predictions.abstained)
    return Tensor("probability", "FP32", [images, classes], predictions.probability)


def to_json(predictions: Predictions, row: int) -> dict[str, Any]:
    """One image's predictions as plain JSON: class is null where the top probability is below the threshold."""
    best, probability = predictions.best[row], predictions.probability[row]
    abstained = bool(predictions.abstained[row])
    return {
        "class": None if abstained else predictions.classes[best[0]],
        "abstained": abstained,
        **({"threshold": round(predictions.threshold, DECIMALS)} if abstained else {}),
        "predictions": [
            {"class": predictions.classes[number], "probability": round(float(probability[number]), DECIMALS)}
            for number in best
        ],
    }


def metadata_of(name: str, served: ServedModel) -> dict[str, Any]:
    """The protocol's metadata of the model; -1 in a shape: the number of images, or top_k."""
    classes = served.classifier.classes
    outputs = [
        {"name": "class", "datatype": "BYTES", "shape": [-1, -1]},
        {"name": "top_probability", "datatype": "FP32", "shape": [-1, -1]},
        {"name": "abstained", "datatype": "BOOL", "shape": [-1]},
        {"name": "probability", "datatype": "FP32", "shape": [-1, len(classes)]},
    ]
    size = served.classifier.preprocess.size
    return {
        "name": name,
        "versions": [served.version],
        "platform": "onnxruntime_onnx",
        "inputs": [{"name": "image", "datatype": "BYTES", "shape": [-1]}],
        "outputs": outputs,
        "parameters": {"classes": classes, "size": size, "threshold": served.threshold},
    }
