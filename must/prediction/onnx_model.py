"""Runs an exported model with onnxruntime and numpy, without torch; reads its threshold for abstaining.

`must evaluate` or `must refine` finds the threshold (must/answers/abstention.py). `must export` writes it to the
ONNX file's metadata under `abstention`; for a bundle, prediction/bundle.py finds the same one."""

import importlib.util
import json
import logging
import os
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from must.base import storage
from must.base.errors import UserError
from must.base.parameters import require
from must.base.text import make_printable
from must.config import PredictConfig
from must.config.work import DESCRIPTION_FILE, ONNX_FILE, PARTS
from must.data.image.preprocess import Preprocess, normalize_pixels
from must.evaluation.result import Metrics
from must.model.description import Selection

logger = logging.getLogger(__name__)

LABELS_FILE = "labels.txt"
KNOWS_NONE = "knows_none"  # in the metadata of a model whose probabilities may have a sum below 1
LARGEST_MODEL = int(0.95 * 2**31)  # bytes of weights in one ONNX file, by the limit of protobuf
SIMILARITY = "similarity"  # the second output of a model with a memory
EMBEDDING = "embedding"  # the last output of a file that was exported with --embeddings


class Classified(NamedTuple):
    """Of B images: probabilities float32 [B, K]; similarity float32 [B], how near an image is to those that the model
    remembers, 0 to 1; NaN without a memory; embeddings float32 [B, D], if they were asked for."""

    probability: np.ndarray
    similarity: np.ndarray
    embedding: np.ndarray | None = None


class Classifier(Protocol):
    """A model that classifies pixels: by an ONNX file, or by torch (prediction/bundle.py)."""

    where: str
    classes: list[str]
    preprocess: Preprocess

    @property
    def metadata(self) -> dict[str, str]: ...

    @property
    def identity(self) -> str: ...

    def __call__(self, pixels: np.ndarray) -> Classified:
        """Classifies uint8 [B, S, S, 3]."""


def load_runtime() -> Any:
    """onnxruntime, without telemetry: newer wheels send usage reports unless it is set before the import."""
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    import onnxruntime

    return onnxruntime


class OnnxClassifier:
    """Pixels -> class probabilities, by an ONNX file of `must export`. `threads`: of a forward pass; 0: onnxruntime's
    default. `sleeping_threads`: between two passes; by default they wait in busy loops, which slows down decoders."""

    def __init__(self, model: Path, where: str = "", threads: int = 0, sleeping_threads: bool = False) -> None:
        onnxruntime = load_runtime()
        where = where or str(model)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # errors; warnings are about graph optimizations
        options.intra_op_num_threads = threads
        options.add_session_config_entry("session.intra_op.allow_spinning", "0" if sleeping_threads else "1")
        gpu = {"CUDAExecutionProvider"} & {*onnxruntime.get_available_providers()}
        try:
            self.session = onnxruntime.InferenceSession(str(model), options, providers=[*gpu, "CPUExecutionProvider"])
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
        self.input_name, self.takes_pixels = inputs[0].name, "uint8" in inputs[0].type
        self.embeddings, self.has_embeddings = False, EMBEDDING in names

    @property
    def identity(self) -> str:
        """A text that changes with the model, its classes or its preprocessing."""
        return json.dumps({name: text for name, text in sorted(self.metadata.items()) if name != "must_version"})

    def give_embeddings(self) -> None:
        """From now on its answers have embeddings."""
        require(self.has_embeddings, f"--embeddings: {self.where} gives none; make it with `must export --embeddings`")
        self.embeddings = True
        self.output_names.append(EMBEDDING)

    def __call__(self, pixels: np.ndarray) -> Classified:
        """Classifies uint8 [B, S, S, 3]."""
        try:
            output = self.run(self.prepare(pixels))
        except Exception as error:  # onnxruntime's own exception classes are private
            raise UserError(f"{self.where}: a forward pass fails: {' '.join(str(error).split())[:200]}") from None
        finite = bool(np.isfinite(output.probability).all())
        require(finite, f"{self.where}: its probabilities are no finite numbers")
        return output

    def run(self, inputs: np.ndarray) -> Classified:
        """Runs the graph on its input [B, ...]."""
        probability, *others = self.session.run(self.output_names, {self.input_name: inputs})
        embedding = others.pop() if self.embeddings else None
        similarity = others[0] if others else np.full(len(probability), np.nan, np.float32)
        return Classified(probability, similarity, embedding)

    def outputs(self, pixels: np.ndarray) -> list[np.ndarray]:
        """All outputs of the graph for uint8 [B, S, S, 3]: the probabilities first."""
        return self.session.run(None, {self.input_name: self.prepare(pixels)})

    def prepare(self, pixels: np.ndarray) -> np.ndarray:
        """The graph's input of uint8 [B, S, S, 3]."""
        return pixels if self.takes_pixels else normalize_pixels(pixels, self.preprocess)


def check_onnx(uri: str) -> dict[str, str] | None:
    """Opens a file that is to be published; returns its metadata. None, with a warning in the log, where onnxruntime is
    not installed."""
    if importlib.util.find_spec("onnxruntime") is None:
        logger.warning(make_printable(f"{uri}: not opened before publishing: onnxruntime is not installed here"))
        return None
    with storage.local_copy(uri) as path:
        return OnnxClassifier(path, uri).metadata


def parse_metadata(metadata: dict[str, str], where: str) -> tuple[list[str], Preprocess]:
    try:
        classes, preprocess = json.loads(metadata["classes"]), Preprocess.from_dict(json.loads(metadata["preprocess"]))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: its metadata are damaged: {error}") from None
    valid = isinstance(classes, list) and all(isinstance(name, str) for name in classes)
    require(valid and bool(classes), f"{where}: its metadata name no classes")
    return classes, preprocess


def find_model_file(model: str) -> str:
    """The URI of model.onnx; `model` is this file or its folder."""
    uri = model if model.endswith(".onnx") else storage.join(model, ONNX_FILE)
    require(storage.exists(uri), f"--model {uri}: no such file; make it with `must export`")
    return uri


def find_other_bundle(uri: str, classifier: OnnxClassifier) -> str:
    """The bundle of WORK if `uri` is an ONNX file in WORK that was exported from another model, as `must refine` makes
    a new one; otherwise ''."""
    folder = Path(uri).parent
    bundle, of_work = folder.parent / PARTS["bundle"].path, folder == folder.parent / PARTS["onnx"].path
    if storage.is_remote(uri) or not of_work or not (bundle / DESCRIPTION_FILE).is_file():
        return ""
    weights = storage.read_json(str(bundle / DESCRIPTION_FILE), "--model").get("weights_sha256")
    return "" if classifier.metadata.get("weights_sha256") == weights else str(bundle)


ABSTENTION = "abstention"  # in the metadata
STORED = -1.0  # selects the threshold in the model


def choose_threshold(abstain: float, classifier: Classifier, where: str) -> float:
    """`abstain`, or for -1 the threshold in the model's metadata; 0, which never abstains, if there is none: that is
    logged."""
    if abstain == STORED and ABSTENTION not in classifier.metadata:
        logger.warning(
            f"warning: {where}: has no threshold of its own, so every image gets a class; "
            "`must refine` with answers, or `must evaluate` with labels, measures one"
        )
    return read_threshold(classifier, where) if abstain == STORED else abstain


def find_measured_abstention(metrics: Metrics | None, selection: Selection | None) -> dict[str, Any] | None:
    """The threshold for abstaining with its coverage and risk, as `must evaluate` measured it by labels, or else `must
    refine` by answers; None: there is none."""
    for measured in (metrics and metrics.abstention, selection and selection.abstention):
        if measured and measured.threshold is not None:
            stored = ("threshold", "coverage", "risk", "bound", "target", "by")
            return {name: getattr(measured, name) for name in stored}
    return None


def read_threshold(classifier: Classifier, where: str) -> float:
    """The threshold in the model's metadata; 0 if there is none."""
    if ABSTENTION not in classifier.metadata:
        return 0.0

    def parse(content: dict[str, Any]) -> float:
        value = content["threshold"]
        require(type(value) in (int, float) and 0 <= value <= 1, "no probability")
        return float(value)

    damaged = UserError(f"{where}: the threshold in its metadata is damaged")
    return storage.parse_object(classifier.metadata[ABSTENTION], parse, damaged)


def open_onnx(config: PredictConfig) -> OnnxClassifier:
    require(config.device == "auto", "--device is for a model that torch runs; onnxruntime takes what it was built for")
    uri = find_model_file(config.model)
    with storage.local_copy(uri) as path:
        classifier = OnnxClassifier(path, uri, config.threads)
    if config.embeddings:
        classifier.give_embeddings()
    if bundle := find_other_bundle(uri, classifier):
        logger.warning(f"warning: {uri}: was exported from another model than {bundle}; run `must export` again")
    return classifier
