"""Latency and throughput of serving on a CPU: onnxruntime in three precisions against PyTorch, in one run.

    python benchmarks/serve.py --bundle model/ --shards shards/       a model and its data
    python benchmarks/serve.py --architecture ViT-B-16                random weights of an open_clip architecture

Every candidate gets the same images and the same number of threads. Rounds are interleaved, so that other load on the
machine affects all of them; ratios are of medians. With shards, top-1 on the labelled split is printed as well.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch

from must.config import ExportConfig
from must.data.image.decode import decode
from must.data.image.preprocess import EvalView, normalize_pixels
from must.data.reader import ShardReader
from must.exporting.export import export
from must.model.bundle import Bundle, load_bundle, save_bundle
from must.model.description import Description, get_preprocess
from must.model.masked_vit import MaskedViT
from must.prediction.onnx_model import OnnxClassifier

Classify = Callable[[np.ndarray], np.ndarray]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", help="a bundle of `must train`")
    parser.add_argument("--architecture", default="ViT-B-16", help="an open_clip model, with random weights")
    parser.add_argument("--shards", default="", help="shards to calibrate int8 on and to take test images from")
    parser.add_argument("--split", default="test", help="labelled split for top-1")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 32])
    parser.add_argument("--seconds", type=float, default=4, help="of measuring, for each candidate and batch")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        path = options.bundle or random_bundle(options.architecture, Path(folder) / "bundle")
        bundle = load_bundle(path)
        candidates = make_candidates(bundle, path, options, Path(folder))
        results = {batch: measure(candidates, bundle, batch, options.seconds) for batch in options.batches}
        accuracy = top1(candidates, bundle, options) if options.shards else {}
    print(f"\n{bundle.description.backbone}, {options.threads} thread(s)")
    for batch, rows in results.items():
        print(f"\nbatch {batch:<16}{'p50 ms':>10}{'p99 ms':>10}{'images/s':>11}{'x eager':>9}")
        for name, times in rows.items():
            middle = np.median(times)
            ratio = np.median(rows["torch eager"]) / middle
            p99 = np.percentile(times, 99)
            print(f"{name:<22}{1e3 * middle:>10.2f}{1e3 * p99:>10.2f}{batch / middle:>11.1f}{ratio:>9.2f}")
    for name, value in accuracy.items():
        print(f"top-1 {name:<16}{100 * value:>10.2f}%")


def make_candidates(bundle: Bundle, path: str, options: argparse.Namespace, folder: Path) -> dict[str, Classify]:
    preprocess = get_preprocess(bundle.description)

    def torch_run(model: Callable) -> Classify:
        def run(pixels: np.ndarray) -> np.ndarray:
            with torch.inference_mode():
                return model(torch.from_numpy(normalize_pixels(pixels, preprocess))).softmax(-1).numpy()

        return run

    candidates: dict[str, Classify] = {
        "torch eager": torch_run(bundle.model),
        "torch.compile": torch_run(torch.compile(bundle.model)),
    }
    for precision in ("fp32", "int8"):
        output = str(folder / precision)
        config = ExportConfig(
            model=path, output=output, precision=precision, shards=options.shards, limit=256, min_agreement=1e-9
        )
        export(config)
        classifier = OnnxClassifier(Path(output) / "model.onnx", threads=options.threads)
        candidates[f"onnxruntime {precision}"] = partial(probabilities, classifier)
    return candidates


def probabilities(classifier: OnnxClassifier, pixels: np.ndarray) -> np.ndarray:
    return classifier(pixels).probability


def measure(candidates: dict[str, Classify], bundle: Bundle, batch: int, seconds: float) -> dict[str, np.ndarray]:
    """Seconds of every call, [calls] for each candidate."""
    size = get_preprocess(bundle.description).size
    pixels = np.random.default_rng(0).integers(0, 256, (batch, size, size, 3), dtype=np.uint8)
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for run in candidates.values():
        for _ in range(3):
            run(pixels)
    end = time.perf_counter() + seconds * len(candidates)
    while time.perf_counter() < end or len(times["torch eager"]) < 5:
        for name, run in candidates.items():
            start = time.perf_counter()
            run(pixels)
            times[name].append(time.perf_counter() - start)
    return {name: np.array(values) for name, values in times.items()}


def top1(candidates: dict[str, Classify], bundle: Bundle, options: argparse.Namespace) -> dict[str, float]:
    reader, view = ShardReader(options.shards, options.split), EvalView(get_preprocess(bundle.description))
    pixels = np.stack([view(decode(reader.image(i))) for i in range(len(reader))])
    labels = [bundle.description.classes.index(reader.description(i)["label"]) for i in range(len(reader))]
    accuracy = {}
    for name, run in candidates.items():
        predicted = np.concatenate([run(pixels[i : i + 32]).argmax(1) for i in range(0, len(pixels), 32)])
        accuracy[name] = float((predicted == labels).mean())
    return accuracy


def random_bundle(architecture: str, folder: Path) -> str:
    """A bundle of a known architecture with random weights: for speed, weights do not matter."""
    import open_clip

    torch.manual_seed(0)
    config = open_clip.get_model_config(architecture)
    clip = open_clip.create_model(architecture, pretrained=None)
    classifier = torch.nn.functional.normalize(torch.randn(config["embed_dim"], 1000), dim=0)
    description = Description(
        architecture={
            "embed_dim": config["embed_dim"],
            "vision_cfg": config["vision_cfg"],
            "quick_gelu": bool(config.get("quick_gelu", False)),
        },
        backbone=f"{architecture} (random weights)",
        pretrained="",
        classes=[f"class {i}" for i in range(1000)],
        templates=[],
        preprocess={"size": clip.visual.image_size[0]},
        logit_factor=100.0,
    )
    save_bundle(str(folder), MaskedViT(clip.visual, classifier), description)
    return str(folder)


if __name__ == "__main__":
    main()
