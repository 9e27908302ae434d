"""An exported model, ready to run: onnxruntime and numpy, no torch. Its threshold below which no class is named.

`must evaluate` calibrates the threshold (must/evaluation/abstention.py), `must export --metrics` puts it into the ONNX
file's metadata under `abstention`, and whatever classifies with that file may ask for it by a threshold of -1.
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
EMBEDDING = "embedding"  # the second output, of a file that was exported with --embeddings


def load_runtime() -> Any:
    """onnxruntime. Its newer wheels report their use to their maker, unless the environment says no beforehand."""
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    import onnxruntime

    return onnxruntime


class OnnxClassifier:
    """Pixels -> class probabilities, by an ONNX file of `must export`.

    `dimensions`: D, of the embeddings that the file gives too; 0: it gives none.

    Args:
        model: the file's bytes, or its local path (needed for a very large one).
        threads: of a forward pass; 0 leaves it to onnxruntime.
        patient: its threads sleep between two passes, where by default they wait in busy loops: better beside decoders.

    Raises:
        ValueError: not an ONNX file that onnxruntime reads, or one without the metadata of `must export`.
    """

    def __init__(self, model: bytes | Path, where: str = "", threads: int = 0, patient: bool = False) -> None:
        onnxruntime = load_runtime()
        where = where or str(model)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # errors; warnings are about graph optimizations
        options.intra_op_num_threads = threads
        options.add_session_config_entry("session.intra_op.allow_spinning", "0" if patient else "1")
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
        """Raises ValueError: the metadata speak of another network than the one in the file."""
        inputs, outputs, size = self.session.get_inputs(), self.session.get_outputs(), self.preprocess.size
        named = [node.name for node in outputs[1:]] in ([], [EMBEDDING])
        require(
            len(inputs) == 1 and bool(outputs) and named,
            f"{where}: expected one input and one output, and at most '{EMBEDDING}' beside it",
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
        self.dimensions, self.output_name = 0, outputs[0].name
        for node in outputs[1:]:
            fits = node.type == "tensor(float)" and len(node.shape) == 2 and isinstance(node.shape[1], int)
            require(fits, f"{where}: its embeddings are {node.type} {node.shape}, not float32 [N, D]")
            self.dimensions = node.shape[1]

    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        """uint8 [B, S, S, 3] -> float32 [B, K]"""
        return self.answer(pixels)[0]

    def answer(self, pixels: np.ndarray, embeddings: bool = False) -> tuple[np.ndarray, np.ndarray | None]:
        """uint8 [B, S, S, 3] -> probabilities float32 [B, K]; and, if they are asked for, `run`'s embeddings.
        Raises ValueError: as `run`; or the pass fails, or gives no finite numbers."""
        images = pixels if self.takes_pixels else normalize_pixels(pixels, self.preprocess)
        try:
            probability, found = self.run(images, embeddings)
        except ValueError:
            raise
        except Exception as error:  # onnxruntime's own exception classes are private
            raise UserError(f"{self.where}: a forward pass fails: {' '.join(str(error).split())[:200]}") from None
        require(bool(np.isfinite(probability).all()), f"{self.where}: its probabilities are no finite numbers")
        return probability, found

    def run(self, inputs: np.ndarray, embeddings: bool = False) -> tuple[np.ndarray, np.ndarray | None]:
        """Images as the graph takes them -> float32 [B, K] and, of a file that has `dimensions`, float32 [B, D].

        Both come of one pass: the embeddings lie on the way to the probabilities, and cost their copy.
        Raises ValueError: the file, which is none of ours then, gives embeddings of another shape than it says.
        """
        if not embeddings:
            return self.session.run([self.output_name], {self.input_name: inputs})[0], None
        probability, embedding = self.session.run([self.output_name, EMBEDDING], {self.input_name: inputs})
        require(
            embedding.shape == (len(inputs), self.dimensions),
            f"{self.where}: gives embeddings {list(embedding.shape)} of {len(inputs)} images, not of {self.dimensions} "
            "numbers each, as it says",
        )
        return probability, embedding

    def require_embeddings(self, what: str = "--embeddings") -> None:
        """Raises ValueError: the file gives none."""
        require(
            self.dimensions > 0,
            f"{what}: {self.where} gives no embeddings; export it again with `must export --embeddings`",
        )


def check_onnx(uri: str) -> None:
    """Opens a file that is to be published. Without onnxruntime it says that it does not.
    Raises ValueError: as OnnxClassifier."""
    if importlib.util.find_spec("onnxruntime") is None:
        logger.warning(printable(f"{uri}: not opened before publishing: onnxruntime is not installed here"))
        return
    with storage.local_copy(uri) as path:
        OnnxClassifier(path, uri)


def parse_metadata(metadata: dict[str, str], where: str) -> tuple[list[str], Preprocess]:
    """Class names and preprocessing. Raises ValueError: they are not what `must export` writes."""
    try:
        classes, preprocess = json.loads(metadata["classes"]), Preprocess.from_dict(json.loads(metadata["preprocess"]))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: its metadata are damaged: {error}") from None
    named = isinstance(classes, list) and all(isinstance(name, str) for name in classes)
    require(named and bool(classes), f"{where}: its metadata name no classes")
    return classes, preprocess


def model_uri(model: str) -> str:
    """The place of model.onnx, given by itself or by its folder. Raises ValueError: there is none."""
    uri = model if model.endswith(".onnx") else storage.join(model, ONNX_FILE)
    require(storage.exists(uri), f"--model {uri}: no such file; make it with `must export`")
    return uri


def providers(onnxruntime: Any) -> list[str]:
    """A GPU if this build of onnxruntime has one, else the CPU."""
    known = onnxruntime.get_available_providers()
    return [name for name in ("CUDAExecutionProvider", "CPUExecutionProvider") if name in known]


METADATA = "abstention"
STORED = -1.0  # "the threshold in the model"


def stored_threshold(metadata: Mapping[str, str], where: str) -> float | None:
    """The threshold in an ONNX file's metadata, None if there is none. Raises ValueError: it is damaged."""
    if METADATA not in metadata:
        return None

    def checked(content: dict[str, Any]) -> float:
        value = content["threshold"]
        require(type(value) in (int, float) and 0 <= value <= 1, "no probability")
        return float(value)

    damaged = UserError(f"{where}: the threshold in its metadata is damaged")
    return storage.parse_object(metadata[METADATA], checked, damaged)


def threshold(asked: float, metadata: Mapping[str, str], where: str) -> float:
    """What `asked` means for this file: itself, or for -1 the file's own. Raises ValueError: it has none."""
    if asked != STORED:
        return asked
    stored = stored_threshold(metadata, where)
    if stored is None:
        raise UserError(
            f"--abstain -1: {where} has no threshold: none satisfied --risk, or it was exported without the "
            "--metrics of `must evaluate`; give one as a number, or 0"
        )
    return stored


class Classifier(Protocol):
    where: str
    classes: list[str]
    preprocess: Preprocess
    metadata: dict[str, str]
    dimensions: int  # D of the embeddings; 0: it has none

    def answer(self, pixels: np.ndarray, embeddings: bool = False) -> tuple[np.ndarray, np.ndarray | None]:
        """uint8 [B, S, S, 3] -> probabilities float32 [B, K]; and, if they are asked for, embeddings float32 [B, D]."""

    def require_embeddings(self, what: str = "--embeddings") -> None:
        """Raises ValueError: it has none."""


class Model(NamedTuple):
    """A model that is there: what its predictions are known by, and how to open it.

    `open` takes whether threads sleep between two passes: better beside processes that decode.
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
        yield Model(storage.sha256_of(path), lambda patient: OnnxClassifier(path, uri, config.threads, patient))
