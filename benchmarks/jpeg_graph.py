"""Could the ONNX file take a JPEG itself? Decoding and resizing inside the graph against the decoder of `must predict`.

    pip install onnxruntime-extensions
    python benchmarks/jpeg_graph.py --model onnx/model.onnx --shards shards/

DecodeImage of onnxruntime-extensions, then ONNX's own Resize (cubic with antialiasing, the nearest to Pillow's
bicubic), a crop and the model. Every picture of the shards is sent as a JPEG, as it is and enlarged to sizes that
cameras and web pages have. What is compared is what the model sees (levels of 255) and what it says.
"""

import argparse
import io
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import onnxruntime_extensions
from onnx import TensorProto, helper
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent.parent))

from must.data.image.decode import decode
from must.data.image.preprocess import EvalView, Preprocess, normalize_pixels
from must.data.loading.reader import ShardReader
from must.deploy.export.jpeg import EXTENSIONS, FILE, decoder_nodes
from must.deploy.predict.session import OnnxClassifier

SIZES = ((0, 0), (96, 96), (640, 427), (427, 640), (1600, 1200))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="model.onnx of `must export`")
    parser.add_argument("--shards", required=True)
    parser.add_argument("--split", default="test")
    options = parser.parse_args()
    classifier = OnnxClassifier(Path(options.model))
    view, reader = EvalView(classifier.preprocess), ShardReader(options.shards, options.split)
    settings = onnxruntime.SessionOptions()
    settings.register_custom_ops_library(onnxruntime_extensions.get_library_path())
    graph = onnxruntime.InferenceSession(pixels_graph(classifier.preprocess).SerializeToString(), settings)
    print(
        "| pictures | pixels: mean difference | largest | largest of a probability | other class | ms here | ms there |"
    )
    print("|---|--:|--:|--:|--:|--:|--:|")
    for size in SIZES:
        differences, probabilities, other, times = [], [], 0, [0.0, 0.0]
        for number in range(len(reader)):
            data = as_jpeg(decode(reader.image(number)), size)
            begun = time.perf_counter()
            ours = view(decode(data))
            middle = time.perf_counter()
            (theirs,) = graph.run(None, {"file": np.frombuffer(data, np.uint8)})
            times = [times[0] + middle - begun, times[1] + time.perf_counter() - middle]
            rounded = theirs[0].transpose(1, 2, 0).astype(np.uint8)
            differences.append(np.abs(rounded.astype(int) - ours.astype(int)))
            a, b = (answer(classifier, pixels) for pixels in (ours, rounded))
            probabilities.append(np.abs(a - b).max())
            other += int(a.argmax() != b.argmax())
        values, name = np.stack(differences), f"{size[0]} x {size[1]}" if size[0] else "as they are"
        milliseconds = [f"{1e3 * value / len(reader):.2f}" for value in times]
        print(
            f"| {name} | {values.mean():.2f} | {values.max()} | {max(probabilities):.3f} | {other} of {len(reader)} | "
            f"{milliseconds[0]} | {milliseconds[1]} |"
        )


def answer(classifier: OnnxClassifier, pixels: np.ndarray) -> np.ndarray:
    ready = normalize_pixels(pixels[None], classifier.preprocess)
    return classifier.session.run(None, {classifier.input_name: ready})[0]


def as_jpeg(image: Image.Image, size: tuple[int, int]) -> bytes:
    file = io.BytesIO()
    (image.resize(size, Image.Resampling.BICUBIC) if size[0] else image).save(file, "JPEG", quality=90)
    return file.getvalue()


def pixels_graph(preprocess: Preprocess) -> onnx.ModelProto:
    """uint8 [bytes] -> float [1, 3, S, S] in 0..255: what `must export --input jpeg` puts before the model."""
    nodes, constants = decoder_nodes(preprocess, "pixels")
    file = helper.make_tensor_value_info(FILE, TensorProto.UINT8, ["bytes"])
    pixels = helper.make_tensor_value_info("pixels", TensorProto.FLOAT, [1, 3, preprocess.size, preprocess.size])
    graph = helper.make_graph(nodes, "pixels", [file], [pixels], constants)
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid(EXTENSIONS, 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=9)


if __name__ == "__main__":
    main()
