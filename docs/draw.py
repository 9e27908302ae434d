"""Makes build/draw, the files of the site's page try.md: `make draw` (needs npm).

The model is the bundled example's, with its memory and 200 true answers. It and onnxruntime-web are packed by gzip; the
page unpacks them, and the pictures of the memory with their embeddings. The model's report is a page beside it."""

from __future__ import annotations

import csv
import gzip
import shutil
import sys
from pathlib import Path

import numpy as np

from must.api.demo import demo, load_digits, name_image
from must.api.stages import call
from must.config import DemoConfig
from must.deploy.onnx_model import OnnxClassifier

ANSWERS = 200
LARGEST = 8_000_000  # bytes of all files


def main() -> None:
    package, output = map(Path, sys.argv[1:])
    example = output / "example"
    demo(DemoConfig(output=str(example)))
    words: dict[str, object] = {
        "images": example / "images/unlabeled",
        "classes": example / "classes.yaml",
        "model": example / "model",
    }
    words |= {"output": example / "work", "test_images": example / "images/test", "train": "no"}
    texts = {name: str(value) for name, value in words.items()}
    call("adapt", **texts)
    with (example / "answers.csv").open("w", newline="") as file:
        labels = [label for _, label in load_digits()["unlabeled"][:ANSWERS]]
        csv.writer(file).writerows([("image", "class"), *((name_image(n), label) for n, label in enumerate(labels))])
    call("review", model=str(example / "work"), add=str(example / "answers.csv"))
    call("adapt", **texts)
    call("export", model=str(example / "work"), embeddings="yes")
    shutil.copy(package / "dist/ort.wasm.bundle.min.mjs", output / "ort.mjs")
    shutil.copy(example / "work/report/report.html", output)
    wasm, model = package / "dist/ort-wasm-simd-threaded.wasm", example / "work/onnx/model.onnx"
    packed = {"ort": wasm.read_bytes(), "model": model.read_bytes(), "pool": list_pool(model).tobytes()}
    for name, content in packed.items():
        (output / f"{name}.bin").write_bytes(gzip.compress(content, mtime=0))
    shutil.rmtree(example)
    size = sum(file.stat().st_size for file in output.iterdir())
    print(f"{output}: {size:,} bytes")
    if size > LARGEST:
        raise SystemExit(f"draw: more than {LARGEST:,} bytes")


def list_pool(model: Path) -> np.ndarray:
    """Int8 [N, 1 + 64 + D], of each picture of the memory: the number of the class that the model gives it, its 8 x 8
    grey values (0 to 127), its embedding times one factor."""
    images = [image for image, _ in load_digits()["unlabeled"]]
    pixels = np.stack([np.asarray(image.convert("RGB")) for image in images])
    probability, _, embedding = OnnxClassifier(model).outputs(pixels)
    grey = np.stack([np.asarray(image.resize((8, 8))).ravel() // 2 for image in images])
    columns = probability.argmax(1)[:, None], grey, np.round(embedding * (127 / np.abs(embedding).max()))
    return np.hstack(columns).astype(np.int8)


if __name__ == "__main__":
    main()
