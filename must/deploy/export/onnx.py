"""`must export --to onnx`: writes the adapted model as ONNX after comparing it with PyTorch."""

import logging
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from must.base import storage
from must.base.files import CARD_FILE, ONNX_FILE
from must.base.parameters import require
from must.base.progress import parts
from must.base.text import encoded, lines_of
from must.config import ExportConfig
from must.data.augment.normalize import normalize
from must.deploy.export.deployed import LARGEST_DIFFERENCE, features_of
from must.deploy.predict.session import EMBEDDING, LABELS_FILE, METADATA, OnnxClassifier
from must.evaluation.result import Metrics, read_metrics
from must.method.model.bundle import Bundle, Description, load_bundle, preprocess_of

logger = logging.getLogger(__name__)

LEAST_AGREEMENT = {"fp32": 1.0, "fp16": 0.99, "int8": 0.97}
RANDOM_IMAGES = 64
README_FILE = "README.md"  # the model card for a hub, with a YAML header
BATCH_SIZES_TRIED = (1, 3, 8)
TIE = 1e-4  # two classes whose probabilities differ by less are a tie: both are correct
LEAST_COSINE = {"fp32": 0.9999, "fp16": 0.999, "int8": 0.95}
"""Of an image's embedding with PyTorch's, by the precision."""


@dataclass(frozen=True)
class Check:
    """The comparison of one exported file with PyTorch in float32."""

    images: int
    agreement: float  # share of images with the same class, ties counted as the same
    largest_difference: float  # of any probability
    cosine: float | None = None  # smallest one of an image's embedding with PyTorch's; None: the file gives none

    def line(self) -> str:
        cosine = "" if self.cosine is None else f", smallest cosine of an embedding {self.cosine:.6f}"
        return (
            f"same class as PyTorch on {100 * self.agreement:.2f}% of {self.images} images, largest difference of a "
            f"probability {self.largest_difference:.1e}{cosine}"
        )


def reference(bundle: Bundle, pixels: np.ndarray) -> np.ndarray:
    """PyTorch's probabilities, float32 [N, K], of uint8 pixels [N, S, S, 3]."""
    images = normalize(torch.from_numpy(pixels), preprocess_of(bundle.description))
    return features_of(bundle.model, images).softmax(dim=-1).numpy()


def reference_embeddings(bundle: Bundle, pixels: np.ndarray) -> np.ndarray:
    """PyTorch's image features of length 1, float32 [N, D], by open_clip's tower."""
    images = normalize(torch.from_numpy(pixels), preprocess_of(bundle.description))
    return F.normalize(features_of(bundle.model.visual, images), dim=-1).numpy()


def compare(
    expected: np.ndarray, classifier: OnnxClassifier, pixels: np.ndarray, embeddings: np.ndarray | None = None
) -> Check:
    """Runs the exported classifier over uint8 pixels [N, S, S, 3] at each batch size.

    `expected` [N, K] are PyTorch's probabilities; `embeddings` [N, D], if the file has them, PyTorch's unit features.
    """
    outputs = [predict_onnx(classifier, pixels, batch) for batch in BATCH_SIZES_TRIED]
    chosen = [
        np.take_along_axis(expected, probability.argmax(axis=1)[:, None], axis=1)[:, 0] for probability, _ in outputs
    ]
    return Check(
        images=len(pixels),
        agreement=float((np.min(chosen, axis=0) >= expected.max(axis=1) - TIE).mean()),
        largest_difference=max(float(np.abs(probability - expected).max()) for probability, _ in outputs),
        cosine=None if embeddings is None else min(smallest_cosine(embeddings, embedding) for _, embedding in outputs),
    )


def smallest_cosine(expected: np.ndarray, embedding: np.ndarray | None) -> float:
    """Between expected and exported unit vectors [N, D]. -1: there are none, their shape differs, they contain NaN, or
    a length differs from 1 by a thousandth."""
    if embedding is None or embedding.shape != expected.shape:
        return -1.0
    lengths = np.linalg.norm(embedding, axis=1)
    return float((embedding * expected).sum(axis=1).min()) if np.all(np.abs(lengths - 1) < 1e-3) else -1.0


def predict_onnx(classifier: OnnxClassifier, pixels: np.ndarray, batch: int) -> tuple[np.ndarray, np.ndarray | None]:
    """Probabilities [N, K], and embeddings [N, D] of a file that gives them."""
    starts, has_embeddings = range(0, len(pixels), batch), classifier.dimensions > 0
    parts = [classifier.predict(pixels[start : start + batch], has_embeddings) for start in starts]
    embeddings = [embedding for _, embedding in parts if embedding is not None]
    return np.concatenate([probability for probability, _ in parts]), np.concatenate(embeddings) if embeddings else None


def export_onnx(config: ExportConfig) -> dict[str, Any]:
    """Writes OUTPUT/model.onnx, labels.txt and the cards; returns the comparison.
    Raises ValueError: no bundle, no shards, or too little agreement with PyTorch; nothing is written then."""
    from must.deploy.export.graph import (  # needs onnx and the exporter
        add_metadata,
        check_graph,
        quantize,
        to_graph,
        to_half,
    )
    from must.deploy.export.model_card import hub_card, model_card

    metrics = read_metrics(config.metrics) if config.metrics else None
    method: str = config.precision
    with tempfile.TemporaryDirectory(prefix="must-export-") as folder, parts("export", 5) as begin:
        begin("the model and images to compare on")
        bundle = load_bundle(config.model)
        pixels = check_images(config, bundle)
        begin("outputs of PyTorch")
        expected = reference(bundle, pixels)
        features = reference_embeddings(bundle, pixels) if config.embeddings else None
        begin("the graph")
        graph = to_graph(bundle, uint8=config.input == "uint8", embeddings=config.embeddings)
        begin(config.precision)
        path = Path(folder) / ONNX_FILE
        if config.precision == "fp16":
            graph = to_half(graph)
        elif config.precision == "int8":
            graph, method = quantize(
                graph, pixels if config.shards else None, preprocess_of(bundle.description), Path(folder)
            )
        abstention = abstention_of(bundle.description, metrics)
        metadata = {METADATA: abstention} if abstention else {}
        if features is not None:
            metadata |= {EMBEDDING: {"dimensions": features.shape[1], "length": 1}}
        add_metadata(graph, bundle, precision=config.precision, input=config.input, arithmetic=method, **metadata)
        check_graph(graph)
        with storage.disk_errors(tempfile.gettempdir()):
            path.write_bytes(graph.SerializeToString())
        begin("outputs of the file")
        classifier = OnnxClassifier(path)
        check = compare(expected, classifier, pixels, features)
        require_check(check, config)
        result = {
            "precision": config.precision,
            "arithmetic": method,
            "megabytes": path.stat().st_size / 1e6,
            "check": {name: value for name, value in asdict(check).items() if value is not None},
            "abstention": abstention,
            "checked_on": f"{config.split} of {config.shards}" if config.shards else "random pixels",
        }
        if features is not None:
            result["dimensions"] = features.shape[1]
        readme = hub_card(bundle.description, result, metrics, "", config.license)
        cards = {CARD_FILE: model_card(bundle.description, result, metrics), README_FILE: readme}
        write_export(config, bundle, path, cards)
    logger.info(f"{storage.join(config.output, ONNX_FILE)}  {method}, {result['megabytes']:.1f} MB")
    logger.info(check.line() + ("" if config.shards else " of random pixels; --shards checks it on real ones"))
    return result


def write_export(config: ExportConfig, bundle: Bundle, model: Path, cards: dict[str, str]) -> None:
    """Deletes model.onnx first and writes it last: a folder with it is complete and of a single export."""
    target = storage.join(config.output, ONNX_FILE)
    storage.delete(target)
    storage.write_bytes(storage.join(config.output, LABELS_FILE), lines_of(bundle.description.classes))
    for name, card in cards.items():
        storage.write_bytes(storage.join(config.output, name), encoded(card))
    storage.upload(model, target)


def abstention_of(description: Description, metrics: Metrics | None) -> dict[str, Any] | None:
    """The threshold for abstaining with its coverage and risk: from the evaluation, else from a bundle of an earlier
    version, whose training computed one. None: neither has one."""
    evaluated = asdict(metrics.abstention) if metrics and metrics.abstention else {}
    selection = description.provenance.selection
    trained = selection.more.get("abstention") if selection else None
    trained = trained if isinstance(trained, dict) else {}
    for calibration, by in ((evaluated, evaluated.get("by")), (trained, "similar images")):
        if calibration.get("threshold") is not None:
            fields = {name: calibration.get(name) for name in ("threshold", "coverage", "risk", "bound")}
            return fields | {"target": calibration.get("target", 0.05), "by": by}
    return None


def check_images(config: ExportConfig, bundle: Bundle) -> np.ndarray:
    """uint8 [N, S, S, 3]: images spread evenly over a split of the shards, or random pixels without shards."""
    preprocess = preprocess_of(bundle.description)
    if not config.shards:
        shape = (RANDOM_IMAGES, preprocess.size, preprocess.size, 3)
        return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    from must.data.image.decode import decode_view
    from must.data.image.preprocess import EvalView
    from must.data.loading.reader import ShardReader

    reader, view = ShardReader(config.shards, config.split, sha256=config.index_sha256), EvalView(preprocess)
    count = min(config.images, len(reader))
    pixels = []
    for number in np.linspace(0, len(reader) - 1, count).astype(int):
        try:
            pixels.append(decode_view(reader.image(int(number)), view, reader.index.max_pixels))
        except ValueError:
            continue  # `must evaluate` reports such images; they are not needed here
    require(bool(pixels), f"--shards {config.shards}: no image of split '{config.split}' can be decoded")
    return np.stack(pixels)


def require_check(check: Check, config: ExportConfig) -> None:
    least, bound = config.min_agreement or LEAST_AGREEMENT[config.precision], LEAST_COSINE[config.precision]
    require(
        check.agreement >= least
        and (config.precision != "fp32" or check.largest_difference < LARGEST_DIFFERENCE)
        and (check.cosine is None or check.cosine >= bound),
        f"the {config.precision} file differs too much from PyTorch ({check.line()}); {100 * least:g}% are needed, and "
        f"a cosine of {bound}; nothing was written. Use another --precision, more calibration images (--shards, "
        "--images), or lower --min-agreement",
    )
