"""Runs an exported model with onnxruntime and numpy, without torch; reads its threshold for abstaining.

`must evaluate` or `must refine` finds the threshold (must/method/answers/estimate.py), `must export` writes it to the
ONNX file's metadata under `abstention`, and a parameter `abstain` of -1 selects it.
"""

import importlib.util
import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from must.base import storage
from must.base.errors import UserError
from must.base.files import ONNX_FILE
from must.base.parameters import require
from must.base.text import printable
from must.config import PredictConfig
from must.data.image.preprocess import Preprocess, normalize_pixels

logger = logging.getLogger(__name__)

LABELS_FILE = "labels.txt"
SIMILARITY = "similarity"  # the second output of a model with a memory
EMBEDDING = "embedding"  # the last output of a file that was exported with --embeddings


class Classified(NamedTuple):
    """Of B images: probabilities float32 [B, K]; similarity float32 [B], how near an image is to those that the model
    remembers, 0 to 1; NaN without a memory."""

    probability: np.ndarray
    similarity: np.ndarray


def load_runtime() -> Any:
    """onnxruntime, without telemetry: newer wheels send usage reports unless it is set before the import."""
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    import onnxruntime

    return onnxruntime


class OnnxClassifier:
    """Pixels -> class probabilities, by an ONNX file of `must export`.

    Raises ValueError: not an ONNX file that onnxruntime reads, or one without the metadata of `must export`.

    Args:
        model: the file's bytes, or its local path (needed for a very large one).
        threads: of a forward pass; 0: onnxruntime's default.
        sleeping_threads: they sleep between two passes; by default they wait in busy loops, which slows down decoders.
    """

    def __init__(self, model: bytes | Path, where: str = "", threads: int = 0, sleeping_threads: bool = False) -> None:
        onnxruntime = load_runtime()
        where = where or str(model)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # errors; warnings are about graph optimizations
        options.intra_op_num_threads = threads
        options.add_session_config_entry("session.intra_op.allow_spinning", "0" if sleeping_threads else "1")
        source = model if isinstance(model, bytes) else str(model)
        try:
            self.session = onnxruntime.InferenceSession(source, options, providers=providers(onnxruntime))
        except Exception as error:  # onnxruntime's own exception classes are private
            raise UserError(f"{where}: onnxruntime cannot read it: {' '.join(str(error).split())[:200]}") from None
        try:
            metadata = self.session.get_modelmeta().custom_metadata_map
        except UnicodeDecodeError:
            raise UserError(f"{where}: is damaged: its metadata is no text in UTF-8") from None
        require(
            {"classes", "preprocess"} <= metadata.keys(), f"{where}: names no classes; it was not made by `must export`"
        )
        self.metadata: dict[str, str] = metadata
        self.classes, self.preprocess = parse_metadata(metadata, where)
        self.where = where
        self.check_shapes(where)
        node = self.session.get_inputs()[0]
        self.input_name, self.takes_pixels = node.name, "uint8" in node.type

    def check_shapes(self, where: str) -> None:
        """Raises ValueError: the metadata do not match the network in the file."""
        inputs, outputs, size = self.session.get_inputs(), self.session.get_outputs(), self.preprocess.size
        names = [node.name for node in outputs[1:]]
        require(
            len(inputs) == 1 and bool(outputs) and names in ([], [SIMILARITY], [EMBEDDING], [SIMILARITY, EMBEDDING]),
            f"{where}: expected one input and one output, and at most '{SIMILARITY}' and '{EMBEDDING}' beside it",
        )
        sides = [side for side in inputs[0].shape[1:] if isinstance(side, int)]
        require(
            sorted(sides) == sorted([3, size, size]), f"{where}: its input is {sides}, its metadata say {size} pixels"
        )
        classes = outputs[0].shape[-1:]
        require(
            classes == [len(self.classes)],
            f"{where}: gives {classes} probabilities, its metadata name {len(self.classes)} classes",
        )
        self.output_names = [outputs[0].name, *([SIMILARITY] if SIMILARITY in names else [])]

    def __call__(self, pixels: np.ndarray) -> Classified:
        """Classifies uint8 [B, S, S, 3].
        Raises ValueError: the pass fails, or its outputs are not finite."""
        try:
            output = self.run(self.prepare(pixels))
        except Exception as error:  # onnxruntime's own exception classes are private
            raise UserError(f"{self.where}: a forward pass fails: {' '.join(str(error).split())[:200]}") from None
        finite = bool(np.isfinite(output.probability).all())
        require(finite, f"{self.where}: its probabilities are no finite numbers")
        return output

    def run(self, inputs: np.ndarray) -> Classified:
        """Runs the graph on its input [B, ...]."""
        probability, *similarity = self.session.run(self.output_names, {self.input_name: inputs})
        return Classified(probability, similarity[0] if similarity else np.full(len(inputs), np.nan, np.float32))

    def outputs(self, pixels: np.ndarray) -> list[np.ndarray]:
        """All outputs of the graph for uint8 [B, S, S, 3]: the probabilities first."""
        return self.session.run(None, {self.input_name: self.prepare(pixels)})

    def prepare(self, pixels: np.ndarray) -> np.ndarray:
        """The graph's input of uint8 [B, S, S, 3]."""
        return pixels if self.takes_pixels else normalize_pixels(pixels, self.preprocess)


def check_onnx(uri: str) -> dict[str, str] | None:
    """Opens a file that is to be published; returns its metadata. None, with a warning in the log, where onnxruntime is
    not installed.
    Raises ValueError: as OnnxClassifier."""
    if importlib.util.find_spec("onnxruntime") is None:
        logger.warning(printable(f"{uri}: not opened before publishing: onnxruntime is not installed here"))
        return None
    with storage.local_copy(uri) as path:
        return OnnxClassifier(path, uri).metadata


def parse_metadata(metadata: dict[str, str], where: str) -> tuple[list[str], Preprocess]:
    """Class names and preprocessing. Raises ValueError: not as `must export` writes them."""
    try:
        classes, preprocess = json.loads(metadata["classes"]), Preprocess.from_dict(json.loads(metadata["preprocess"]))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: its metadata are damaged: {error}") from None
    valid = isinstance(classes, list) and all(isinstance(name, str) for name in classes)
    require(valid and bool(classes), f"{where}: its metadata name no classes")
    return classes, preprocess


def model_uri(model: str) -> str:
    """The URI of model.onnx; `model` is this file or its folder. Raises ValueError: no such file."""
    uri = model if model.endswith(".onnx") else storage.join(model, ONNX_FILE)
    require(storage.exists(uri), f"--model {uri}: no such file; make it with `must export`")
    return uri


def providers(onnxruntime: Any) -> list[str]:
    """A GPU if this build of onnxruntime has one, else the CPU."""
    available = onnxruntime.get_available_providers()
    return [name for name in ("CUDAExecutionProvider", "CPUExecutionProvider") if name in available]


ABSTENTION = "abstention"  # in the metadata
STORED = -1.0  # selects the threshold in the model


def stored_threshold(metadata: Mapping[str, str], where: str) -> float | None:
    """The threshold in an ONNX file's metadata, None if there is none. Raises ValueError: it is damaged."""
    if ABSTENTION not in metadata:
        return None

    def parse(content: dict[str, Any]) -> float:
        value = content["threshold"]
        require(type(value) in (int, float) and 0 <= value <= 1, "no probability")
        return float(value)

    damaged = UserError(f"{where}: the threshold in its metadata is damaged")
    return storage.parse_object(metadata[ABSTENTION], parse, damaged)


def threshold(abstain: float, metadata: Mapping[str, str], where: str) -> float:
    """`abstain`, or for -1 the threshold in the file; 0, which never abstains, if it has none."""
    return stored_threshold(metadata, where) or 0.0 if abstain == STORED else abstain


class Classifier(Protocol):
    where: str
    classes: list[str]
    preprocess: Preprocess
    metadata: dict[str, str]

    def __call__(self, pixels: np.ndarray) -> Classified:
        """Classifies uint8 [B, S, S, 3]."""


class Model(NamedTuple):
    """An existing model: the checksum that identifies its predictions, and a function that opens it.

    The argument of `open` is `sleeping_threads`, as in OnnxClassifier.
    """

    sha256: str
    open: Callable[[bool], Classifier]


Opener = Callable[[PredictConfig], AbstractContextManager[Model]]


@contextmanager
def onnx_model(config: PredictConfig) -> Iterator[Model]:
    """The ONNX file of --model, copied from its bucket. Raises ValueError: there is none."""
    require(config.device == "auto", "--device is for a model that torch runs; onnxruntime takes what it was built for")
    uri = model_uri(config.model)
    with storage.local_copy(uri) as path:
        yield Model(storage.compute_sha256(path), lambda sleeping: OnnxClassifier(path, uri, config.threads, sleeping))
