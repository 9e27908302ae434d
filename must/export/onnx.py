"""The stage `must export`: the adapted model as ONNX, compared with PyTorch before it gets its name."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from must import storage
from must.config import ExportConfig
from must.export.check import LARGEST_DIFFERENCE, Check, compare, reference
from must.export.serving import write_serving
from must.model.bundle import Bundle, load_bundle, preprocess_of
from must.parameters import require
from must.predict.session import LABELS_FILE, MODEL_FILE, OnnxClassifier
from must.text import encoded

LEAST_AGREEMENT = {"fp32": 1.0, "fp16": 0.99, "int8": 0.97}
RANDOM_IMAGES = 64
CARD_FILE = "MODEL_CARD.md"


def export(config: ExportConfig) -> dict[str, Any]:
    """Writes OUTPUT/model.onnx, labels.txt, MODEL_CARD.md and what `--triton` asks for; returns the comparison.

    Raises:
        ValueError: no bundle, no shards, or a file that agrees with PyTorch less than stated; nothing is written then.
    """
    from must.export.graph import add_metadata, check_graph, to_graph  # needs onnx and the exporter
    from must.export.model_card import model_card, read_metrics
    from must.export.quantize import quantize, to_half

    bundle = load_bundle(config.model)
    metrics = read_metrics(config.metrics)
    pixels = check_images(config, bundle)
    expected = reference(bundle, pixels)
    graph = to_graph(bundle, uint8=config.input == "uint8")
    method: str = config.precision
    with tempfile.TemporaryDirectory(prefix="must-export-") as folder:
        path = Path(folder) / MODEL_FILE
        if config.precision == "fp16":
            graph = to_half(graph)
        elif config.precision == "int8":
            graph, method = quantize(
                graph, pixels if config.shards else None, preprocess_of(bundle.description), Path(folder)
            )
        add_metadata(graph, bundle, precision=config.precision, input=config.input, arithmetic=method)
        check_graph(graph)
        path.write_bytes(graph.SerializeToString())
        classifier = OnnxClassifier(path)
        check = compare(expected, classifier, pixels)
        refuse(check, config)
        result = {
            "precision": config.precision,
            "arithmetic": method,
            "megabytes": path.stat().st_size / 1e6,
            "check": check.to_dict(),
            "checked_on": f"{config.split} of {config.shards}" if config.shards else "random pixels",
        }
        write(config, bundle, path, model_card(bundle.description, result, metrics))
    print(f"{storage.join(config.output, MODEL_FILE)}  {method}, {result['megabytes']:.1f} MB")
    print(check.line() + ("" if config.shards else " of random pixels; --shards checks it on real ones"))
    return result


def write(config: ExportConfig, bundle: Bundle, model: Path, card: str) -> None:
    """Everything beside the model first, so that a folder with model.onnx is complete."""
    labels = encoded("".join(" ".join(name.split()) + "\n" for name in bundle.description.classes))
    storage.write_bytes(storage.join(config.output, LABELS_FILE), labels)
    storage.write_bytes(storage.join(config.output, CARD_FILE), encoded(card))
    if config.triton:
        preprocess = preprocess_of(bundle.description)
        write_serving(config.output, config.triton, model, labels, preprocess, config.input == "uint8")
    storage.upload(model, storage.join(config.output, MODEL_FILE))


def check_images(config: ExportConfig, bundle: Bundle) -> np.ndarray:
    """uint8 [N, S, S, 3]: images spread evenly over a split of the shards, or random pixels without shards."""
    preprocess = preprocess_of(bundle.description)
    if not config.shards:
        shape = (RANDOM_IMAGES, preprocess.size, preprocess.size, 3)
        return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    from must.data.reader import ShardReader
    from must.image.decode import seen
    from must.image.preprocess import EvalView

    reader, view = ShardReader(config.shards, config.split, sha256=config.index_sha256), EvalView(preprocess)
    count = min(config.images, len(reader))
    pixels = []
    for number in np.linspace(0, len(reader) - 1, count).astype(int):
        try:
            pixels.append(seen(reader.image(int(number)), view, reader.index.max_pixels))
        except ValueError:
            continue  # evaluate counts such images; here the others do
    require(bool(pixels), f"--shards {config.shards}: no image of split '{config.split}' can be decoded")
    return np.stack(pixels)


def refuse(check: Check, config: ExportConfig) -> None:
    least = config.min_agreement or LEAST_AGREEMENT[config.precision]
    require(
        check.agreement >= least,
        f"the {config.precision} file gives PyTorch's class on {100 * check.agreement:.2f}% of {check.images} images, "
        f"{100 * least:g}% are needed; nothing was written. Use another --precision, "
        "more calibration images (--shards, --images), or lower --min-agreement",
    )
    require(
        config.precision != "fp32" or check.largest_difference < LARGEST_DIFFERENCE,
        f"the file's probabilities differ from PyTorch's by up to {check.largest_difference:.1e}; nothing was written",
    )
