"""The stage `must export`: writes a bundle as an ONNX file, or as a model folder in open_clip's format.

What was exported is compared, with the bundle in PyTorch or with open_clip's own outputs, before any file is written
to the output."""

import json
import logging
import math
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from must.base import storage
from must.base.errors import MustError, UserError
from must.base.parameters import require
from must.base.program import show_parts
from must.base.text import encode_utf8, join_lines
from must.config import ExportConfig
from must.config.work import CLASSIFIER_FILE, MODEL_FOLDER_FILE, ONNX_FILE
from must.data.augment import normalize
from must.data.image.decode import decode_view
from must.data.image.preprocess import EvalView
from must.data.reader import ShardReader
from must.evaluation.result import Metrics, read_metrics
from must.model.backbone import Backbone, load_backbone, quiet_open_clip, write_files
from must.model.bundle import Bundle, load_bundle
from must.model.classifier import read_header
from must.model.description import get_preprocess, require_same_model
from must.model.hub import find_first_line
from must.model.memory import SAME_IMAGE_INT8
from must.prediction.onnx_model import (
    ABSTENTION,
    EMBEDDING,
    KNOWS_NONE,
    LABELS_FILE,
    OnnxClassifier,
    find_measured_abstention,
)

logger = logging.getLogger(__name__)

LARGEST_DIFFERENCE = 1e-3  # in a probability, of float32 arithmetic
LEAST_AGREEMENT = {"fp32": 1.0, "int8": 0.97}
LEAST_COSINE = {"fp32": 0.9999, "int8": 0.95}
"""Of an image's embedding with PyTorch's, by the precision."""
RANDOM_IMAGES = 64
BATCH_SIZES_TRIED = (1, 3, 8)
TIE = 1e-4  # two classes whose probabilities differ by less are a tie: both are correct


def export(config: ExportConfig) -> dict[str, Any]:
    """Writes the format `config.to`; returns the comparison."""
    metrics = read_metrics(config.metrics) if config.metrics else None
    with show_parts("export", 5) as begin, torch.no_grad():
        begin("the model and images to compare on")
        bundle = load_bundle(config.model)
        if metrics:
            made_of = metrics.model.weights_sha256
            require_same_model(f"--metrics {config.metrics}", made_of, bundle.description, "must evaluate")
        pixels = load_images(config, bundle)
        write = export_onnx if config.to == "onnx" else export_folder
        return write(config, bundle, pixels, metrics, begin)


@dataclass(frozen=True)
class Check:
    """The comparison of one ONNX file with PyTorch in float32."""

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


def export_onnx(
    config: ExportConfig, bundle: Bundle, pixels: np.ndarray, metrics: Metrics | None, begin: Any
) -> dict[str, Any]:
    """Writes OUTPUT/model.onnx, labels.txt and the cards. `pixels`: from `load_images`; `begin`: from `show_parts`."""
    from must.exporting.graph import add_metadata, check_graph, quantize, to_graph  # needs onnx and the exporter
    from must.exporting.model_card import README_FILE, make_model_card

    description, method = bundle.description, str(config.precision)
    with tempfile.TemporaryDirectory(prefix="must-export-") as folder:
        begin("outputs of PyTorch")
        expected, embeddings = compute_reference(bundle, pixels)
        features = embeddings if config.embeddings else None
        begin("the graph")
        if config.precision == "int8" and bundle.memory:
            bundle.memory.same_image = SAME_IMAGE_INT8
        graph = to_graph(bundle, uint8=config.input == "uint8", embeddings=config.embeddings)
        begin(config.precision)
        if config.precision == "int8":
            calibration = pixels if config.shards else None
            graph, method = quantize(graph, calibration, get_preprocess(description), Path(folder))
        dimensions = {} if features is None else {"dimensions": features.shape[1]}
        extra: dict[str, Any] = {EMBEDDING: dimensions | {"length": 1}} if dimensions else {}
        abstention = find_measured_abstention(metrics, description.provenance.selection)
        extra |= {ABSTENTION: abstention} if abstention else {}
        extra |= {KNOWS_NONE: True} if bundle.memory and bundle.memory.facts.none else {}
        add_metadata(graph, description, precision=config.precision, input=config.input, arithmetic=method, **extra)
        check_graph(graph)
        path = Path(folder) / ONNX_FILE
        with storage.disk_errors(tempfile.gettempdir()):
            path.write_bytes(graph.SerializeToString())
        begin("outputs of the file")
        check = compare(expected, OnnxClassifier(path), pixels, features)
        require_check(check, config)
        result = {
            "precision": config.precision,
            "arithmetic": method,
            "megabytes": path.stat().st_size / 1e6,
            "check": {name: value for name, value in asdict(check).items() if value is not None},
            "abstention": abstention,
            "checked_on": describe_images(config),
            **dimensions,
        }
        target = storage.join(config.output, ONNX_FILE)
        storage.delete(target)  # first, and written last: a folder with it is complete and of a single export
        card = encode_utf8(make_model_card(description, result, metrics, config.license))
        for name, data in {LABELS_FILE: join_lines(description.classes), README_FILE: card}.items():
            storage.write_bytes(storage.join(config.output, name), data)
        storage.upload(path, target)
    logger.info(f"{target}  {method}, {result['megabytes']:.1f} MB")
    if abstention:
        below = f"below a probability of {abstention['threshold']:.6g} (by {abstention['by']})"
        logger.info(
            f"with --abstain -1 no class is named {below}; {abstention['coverage']:.0%} of the measured images get one"
        )
    logger.info(check.line() + ("" if config.shards else " of random pixels; --shards checks it on real ones"))
    return result


def describe_images(config: ExportConfig) -> str:
    """The images that an export is compared on, in words."""
    return f"{config.split} of {config.shards}" if config.shards else "random pixels"


def load_images(config: ExportConfig, bundle: Bundle) -> np.ndarray:
    """uint8 [N, S, S, 3]: images spread evenly over a split of the shards, or random pixels without shards."""
    preprocess = get_preprocess(bundle.description)
    if not config.shards:
        shape = (RANDOM_IMAGES, preprocess.size, preprocess.size, 3)
        return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    reader, view = ShardReader(config.shards, config.split, sha256=config.index_sha256), EvalView(preprocess)
    pixels = []
    for number in np.linspace(0, len(reader) - 1, min(config.limit, len(reader))).astype(int):
        with suppress(ValueError):  # `must evaluate` reports such images; they are not needed here
            pixels.append(decode_view(reader.image(int(number)), view, reader.index.max_pixels))
    require(bool(pixels), f"--shards {config.shards}: no image of split '{config.split}' can be decoded")
    return np.stack(pixels)


def compute_reference(bundle: Bundle, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """PyTorch's probabilities [N, K] and image features of length 1 [N, D], float32, of uint8 pixels [N, S, S, 3]."""
    images = normalize(torch.from_numpy(pixels), get_preprocess(bundle.description))
    probability, _, features = run_in_batches(bundle.classify, images)
    return probability.numpy(), features.numpy()


def run_in_batches(network: Callable[[Tensor], Sequence[Tensor]], images: Tensor) -> list[Tensor]:
    """The network's outputs, each [N, ...], for images [N, 3, S, S], 32 at a time."""
    with torch.inference_mode():
        return [torch.cat(parts) for parts in zip(*map(network, images.split(32)), strict=True)]


def compare(
    expected: np.ndarray, classifier: OnnxClassifier, pixels: np.ndarray, features: np.ndarray | None = None
) -> Check:
    """Runs the exported classifier over uint8 pixels [N, S, S, 3] at each batch size.

    `expected` [N, K] are PyTorch's probabilities; `features` [N, D], if the file has embeddings, PyTorch's."""
    agreements, differences, cosines = [], [], []
    for batch in BATCH_SIZES_TRIED:
        batches = [classifier.outputs(pixels[start : start + batch]) for start in range(0, len(pixels), batch)]
        probability = np.concatenate([outputs[0] for outputs in batches])
        chosen = np.take_along_axis(expected, probability.argmax(axis=1)[:, None], axis=1)[:, 0]
        agreements.append(chosen >= expected.max(axis=1) - TIE)
        differences.append(float(np.abs(probability - expected).max()))
        if features is not None:
            cosines.append(find_smallest_cosine(features, np.concatenate([outputs[-1] for outputs in batches])))
    agreement = float(np.min(agreements, axis=0).mean())
    return Check(len(pixels), agreement, max(differences), min(cosines) if cosines else None)


def find_smallest_cosine(expected: np.ndarray, embedding: np.ndarray) -> float:
    """Between expected and exported unit vectors [N, D]. -1: their shape differs, they contain NaN, or a length differs
    from 1 by a thousandth."""
    if embedding.shape != expected.shape:
        return -1.0
    lengths = np.linalg.norm(embedding, axis=1)
    return float((embedding * expected).sum(axis=1).min()) if np.all(np.abs(lengths - 1) < 1e-3) else -1.0


class ParityError(MustError):
    """The exported file computes something else than PyTorch."""


def require_check(check: Check, config: ExportConfig) -> None:
    """Raises ParityError: names the figures that failed, with their bounds."""
    least, bound = config.min_agreement or LEAST_AGREEMENT[config.precision], LEAST_COSINE[config.precision]
    failed = []
    if check.agreement < least:
        failed.append(
            f"the same class on {100 * check.agreement:.2f}% of {check.images} images, needed {100 * least:g}%"
        )
    if config.precision == "fp32" and not check.largest_difference < LARGEST_DIFFERENCE:
        failed.append(f"a probability differs by {check.largest_difference:.1e}, allowed {LARGEST_DIFFERENCE:g}")
    if check.cosine is not None and not check.cosine >= bound:
        failed.append(f"an embedding has the cosine {check.cosine:.6f}, needed {bound}")
    advice = "more calibration images (--limit), --precision fp32, or a lower --min-agreement"
    if failed:
        raise ParityError(
            f"the {config.precision} file differs too much from PyTorch: {'; '.join(failed)}; nothing was written"
            + (f". What may help: {advice}" if config.precision == "int8" else "")
        )


OPTIONAL_FILES = {
    "bpe.txt.gz", "config.json", "vocab.json", "merges.txt", "special_tokens_map.json", "tokenizer_config.json",
    "tokenizer.json", "added_tokens.json", "sentencepiece.bpe.model", "spiece.model",
}  # fmt: skip
"""Of text towers: not every model has them."""


def export_folder(
    config: ExportConfig, bundle: Bundle, pixels: np.ndarray, metrics: Metrics | None, begin: Any
) -> dict[str, Any]:
    """Writes the folder OUTPUT; returns the comparison. `pixels`: uint8 [N, S, S, 3]; `begin`: from `show_parts`."""
    from must.exporting.model_card import README_FILE, make_model_card

    images = normalize(torch.from_numpy(pixels), get_preprocess(bundle.description))
    parent = None if storage.is_remote(config.output) else storage.local(config.output).absolute().parent
    if parent:  # of the temporary files: on the same disk as OUTPUT
        with storage.disk_errors(parent):
            parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=storage.TEMPORARY, dir=parent) as folder:
        scratch = Path(folder)
        begin("the files")
        write_files(load_whole_model(config.classifier, config.model, bundle), scratch)
        begin("outputs of open_clip")
        features = open_clip_features(scratch, images)
        begin("outputs of the bundle")
        of_logit, of_probability = compare_features(bundle, images, features)
        require(
            of_probability < LARGEST_DIFFERENCE,
            "--to open_clip: open_clip computes another network of these weights (probabilities differ by up to "
            f"{of_probability:.1e}); nothing was written",
        )
        begin("the card")
        write_classifier(bundle, scratch)
        result = {
            "to": config.to,
            "check": {"images": len(images), "largest_difference": of_probability},
            "largest_logit_difference": of_logit,
            "checked_on": describe_images(config),
        }
        # The folder has no memory: its accuracy is the tower's.
        measured = replace(metrics, adapted=metrics.tower) if metrics and metrics.tower else metrics
        card = make_model_card(bundle.description, result, measured, config.license)
        (scratch / README_FILE).write_bytes(encode_utf8(card))
        publish(scratch, config.output)
    logger.info(
        f"{config.output}  for {config.to}; compared on {len(images)} images ({result['checked_on']}): largest "
        f"difference of a probability {of_probability:.1e}"
    )
    if bundle.memory:
        gain = "; `must export` without --to holds both"
        if metrics and metrics.tower and metrics.adapted:
            top1 = f"top-1 {metrics.tower.top1:.1%}, with the memory {metrics.adapted.top1:.1%}"
            gain = f": {top1} (`must export` without --to)"
        logger.info(f"open_clip holds the tower alone, without the memory{gain}")
    return result


def load_whole_model(classifier: str, model: str, bundle: Bundle) -> Backbone:
    """The classifier file's model with the image tower and the logit factor of the bundle at `model`."""
    header = read_header(classifier)
    backbone = load_backbone(*header.find_model())
    clip: Any = backbone.clip
    require(
        have_same_tower(backbone.architecture, bundle.description.architecture),
        f"--classifier {classifier}: was made with {header.model}, whose image tower is of another shape "
        f"than that of --model {model} ({bundle.description.backbone})",
    )
    clip.visual.load_state_dict(bundle.model.visual.state_dict())
    with torch.no_grad():
        clip.logit_scale.fill_(math.log(bundle.description.logit_factor))
    return backbone


def have_same_tower(first: dict[str, Any], second: dict[str, Any]) -> bool:
    """Whether two architectures have the same image tower; a missing option equals None."""
    one, other = ({k: v for k, v in each["vision_cfg"].items() if v is not None} for each in (first, second))
    return one == other and all(first[name] == second[name] for name in ("embed_dim", "quick_gelu"))


def open_clip_features(folder: Path, images: Tensor) -> Tensor:
    """The features [N, D] that open_clip computes with the written folder, of normalised images [N, 3, S, S]."""
    import open_clip

    try:
        with quiet_open_clip():
            model = open_clip.create_model(f"local-dir:{folder}").eval()
    except Exception as error:  # any kind: for text towers of transformers, open_clip sends requests to a hub
        raise UserError(
            f"--to open_clip: open_clip does not load what was written: {find_first_line(error)}"
        ) from error
    return run_in_batches(lambda part: [model.encode_image(part)], images)[0]


def compare_features(bundle: Bundle, images: Tensor, features: Tensor) -> tuple[float, float]:
    """The largest differences of a logit and of a probability. `images` [N, 3, S, S], normalised; `features` [N, D]:
    open_clip's features of them."""
    expected = run_in_batches(lambda part: [bundle.model(part)], images)[0]
    logits = bundle.model.logit_factor * F.normalize(features.float(), dim=-1) @ bundle.model.classifier
    pairs = (expected, logits), (expected.softmax(-1), logits.softmax(-1))
    of_logit, of_probability = ((one - other).abs().max().item() for one, other in pairs)
    return of_logit, of_probability


def write_classifier(bundle: Bundle, folder: Path) -> None:
    """Writes `classifier` [D, K], the columns after training, `logit_factor`, and the class names as JSON in the
    metadata."""
    from safetensors.torch import save

    description = bundle.description
    factor = torch.tensor(description.logit_factor, dtype=torch.float32)
    weights = {"classifier": bundle.model.classifier.detach().float().contiguous(), "logit_factor": factor}
    (folder / CLASSIFIER_FILE).write_bytes(save(weights, {"classes": json.dumps(description.classes)}))
    (folder / LABELS_FILE).write_bytes(join_lines(description.classes))


def publish(scratch: Path, output: str) -> None:
    """Moves the files into OUTPUT, its configuration last; deletes the files of an earlier export.

    Without a configuration the folder is no model, so that nobody reads a mixture of two exports."""
    storage.delete(storage.join(output, MODEL_FOLDER_FILE))
    files = sorted((path.name for path in scratch.iterdir()), key=lambda name: (name == MODEL_FOLDER_FILE, name))
    for name in sorted(OPTIONAL_FILES - set(files)):
        storage.delete(storage.join(output, name))
    for name in files:
        (storage.upload if storage.is_remote(output) else storage.move)(scratch / name, storage.join(output, name))
