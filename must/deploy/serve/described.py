"""What the server says of itself and of its model: the protocol's metadata."""

from typing import Any

from must.deploy.serve.models import Served

EXTENSIONS = ["binary_tensor_data", "classification"]


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
