"""An exported model, ready to run: onnxruntime and numpy, no torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from must import storage
from must.image.preprocess import Preprocess, normalize_pixels
from must.parameters import require

MODEL_FILE, LABELS_FILE = "model.onnx", "labels.txt"


class OnnxClassifier:
    """Pixels -> class probabilities, by an ONNX file of `must export`.

    Args:
        model: the file's bytes, or its local path (needed for a very large one).
        threads: of a forward pass; 0 leaves it to onnxruntime.

    Raises:
        ValueError: not an ONNX file that onnxruntime reads, or one without the metadata of `must export`.
    """

    def __init__(self, model: bytes | Path, where: str = "", threads: int = 0) -> None:
        import onnxruntime

        where = where or str(model)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # errors; warnings are about graph optimizations
        options.intra_op_num_threads = threads
        source = model if isinstance(model, bytes) else str(model)
        try:
            self.session = onnxruntime.InferenceSession(source, options, providers=providers(onnxruntime))
        except Exception as error:  # onnxruntime's own exception classes are private
            raise ValueError(f"{where}: onnxruntime cannot read it: {' '.join(str(error).split())[:200]}") from None
        metadata = self.session.get_modelmeta().custom_metadata_map
        require(
            {"classes", "preprocess"} <= metadata.keys(), f"{where}: names no classes; it was not made by `must export`"
        )
        self.metadata: dict[str, str] = metadata
        self.classes, self.preprocess = parse_metadata(metadata, where)
        self.check_shapes(where)
        node = self.session.get_inputs()[0]
        self.input_name, self.takes_pixels = node.name, "uint8" in node.type

    def check_shapes(self, where: str) -> None:
        """Raises ValueError: the metadata speak of another network than the one in the file."""
        inputs, outputs, size = self.session.get_inputs(), self.session.get_outputs(), self.preprocess.size
        require(len(inputs) == 1 and len(outputs) == 1, f"{where}: expected one input and one output")
        sides = [side for side in inputs[0].shape[1:] if isinstance(side, int)]
        require(
            sorted(sides) == sorted([3, size, size]), f"{where}: its input is {sides}, its metadata say {size} pixels"
        )
        classes = outputs[0].shape[-1:]
        require(
            classes == [len(self.classes)],
            f"{where}: gives {classes} probabilities, its metadata name {len(self.classes)} classes",
        )

    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        """uint8 [B, S, S, 3] -> float32 [B, K]"""
        inputs = pixels if self.takes_pixels else normalize_pixels(pixels, self.preprocess)
        return self.session.run(None, {self.input_name: inputs})[0]


def parse_metadata(metadata: dict[str, str], where: str) -> tuple[list[str], Preprocess]:
    """Class names and preprocessing. Raises ValueError: they are not what `must export` writes."""
    try:
        classes, preprocess = json.loads(metadata["classes"]), Preprocess.from_dict(json.loads(metadata["preprocess"]))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where}: its metadata are damaged: {error}") from None
    named = isinstance(classes, list) and all(isinstance(name, str) for name in classes)
    require(named and bool(classes), f"{where}: its metadata name no classes")
    return classes, preprocess


def load_classifier(model: str, threads: int = 0) -> OnnxClassifier:
    """From model.onnx or the folder it lies in, local or gs://.

    Raises:
        ValueError: there is none, or it is not one of `must export`.
    """
    uri = model if model.endswith(".onnx") else storage.join(model, MODEL_FILE)
    require(storage.exists(uri), f"--model {uri}: no such file; make it with `must export`")
    return OnnxClassifier(storage.read_bytes(uri) if storage.is_remote(uri) else storage.local(uri), uri, threads)


def providers(onnxruntime: Any) -> list[str]:
    """A GPU if this build of onnxruntime has one, else the CPU."""
    known = onnxruntime.get_available_providers()
    return [name for name in ("CUDAExecutionProvider", "CPUExecutionProvider") if name in known]
