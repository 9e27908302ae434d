"""`must export --input jpeg`: the model with a decoder before it, in one file that takes a picture's bytes.

The picture is decoded by DecodeImage of onnxruntime-extensions (libjpeg, libpng) and resized by ONNX's own Resize with
antialiasing, which at the sizes that EvalView computes differs from Pillow by one level of 255 at most
(benchmarks/jpeg_graph.py). Whatever else `must predict` looks after is not in the graph: EXIF's orientation, colour
profiles, transparency, and what a hostile file may cost. One picture a pass. A grey JPEG is an error there: the decoder
(0.15) gives one plane for it, and for some sizes a wrong one.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from must.base.parameters import require
from must.data.image.decode import identify, orientation, seen
from must.data.image.preprocess import EvalView, Preprocess
from must.deploy.export.check import smallest_cosine
from must.deploy.predict.session import OnnxClassifier, load_runtime

FILE = "file"  # the input: uint8 [bytes]
EXTENSIONS = "com.microsoft.extensions"
TOLERANCE = 0.05
"""Of a probability, which is also what two classes may differ by to count as a tie: a level of 255 in some pixels."""
COSINE = 0.99  # of an image's two embeddings
CUBIC = -0.5  # Pillow's bicubic


def decoder_nodes(preprocess: Preprocess, output: str) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
    """(nodes, constants) from `file` to float32 [1, 3, S, S] in 0..255, whole numbers as Pillow gives them."""
    size, axes = preprocess.size, [2, 3]
    constants: dict[str, np.ndarray] = {
        "bgr": np.array([2, 1, 0]), "zero": np.array([0]), "size": np.array([size]), "both": np.array([size, size]),
        "axes": np.array(axes), "half": np.array([0.5], np.float32), "low": np.array(0, np.float32),
        "high": np.array(255, np.float32),
    }  # fmt: skip
    cubic: dict[str, Any] = {"mode": "cubic", "cubic_coeff_a": CUBIC}
    filtering = cubic if preprocess.interpolation == "bicubic" else {"mode": "linear"}
    squash = preprocess.resize_mode == "squash"
    steps: list[tuple[Any, ...]] = [
        ("DecodeImage", [FILE], "decoded", {"domain": EXTENSIONS}),
        ("Gather", ["decoded", "bgr"], "rgb", {"axis": 2}),  # fails for a grey JPEG's one plane
        ("Cast", ["rgb"], "floats", {"to": TensorProto.FLOAT}),
        ("Transpose", ["floats"], "planes", {"perm": [2, 0, 1]}),
        ("Unsqueeze", ["planes", "zero"], "batch", {}),
        ("Shape", ["batch"], "sides", {"start": 2, "end": 4}),
        ("ReduceMin", ["sides"], "short", {}),
        ("Mul", ["sides", "size"], "times", {}),
        ("Div", ["times", "short"], "new", {}),  # rounded down, as EvalView has it
        (
            "Resize",
            ["batch", "", "", "both" if squash else "new"],
            "resized",
            {"antialias": 1, "axes": axes, **filtering},
        ),
        ("Round", ["resized"], "whole", {}),
        ("Clip", ["whole", "low", "high"], "levels", {}),
        ("Sub", ["new", "size"], "rest", {}),
        ("Cast", ["rest"], "rest_float", {"to": TensorProto.FLOAT}),
        ("Mul", ["rest_float", "half"], "half_rest", {}),
        ("Round", ["half_rest"], "rounded", {}),  # to even, as Python does
        ("Cast", ["rounded"], "begin", {"to": TensorProto.INT64}),
        ("Add", ["begin", "size"], "end", {}),
        ("Slice", ["levels", "begin", "end", "axes"], "cropped", {}),
    ]
    own = {name for _, _, name, _ in steps} | constants.keys()
    last = "levels" if squash else "cropped"

    def named(name: str) -> str:
        return output if name == last else f"decoder/{name}" if name in own else name

    nodes = [
        helper.make_node(kind, [named(name) for name in names], [named(result)], name=named(result), **more)
        for kind, names, result, more in steps
    ]
    return nodes, [numpy_helper.from_array(value, named(name)) for name, value in constants.items()]


def with_decoder(graph: onnx.ModelProto, preprocess: Preprocess) -> onnx.ModelProto:
    """A graph that takes normalised floats, as one that takes a picture's bytes."""
    whole = onnx.ModelProto()
    whole.CopyFrom(graph)
    image = whole.graph.input[0].name
    nodes, constants = decoder_nodes(preprocess, "decoder/pixels")
    normal = {
        "decoder/mean": 255 * np.array(preprocess.mean, np.float32).reshape(1, 3, 1, 1),
        "decoder/std": 255 * np.array(preprocess.std, np.float32).reshape(1, 3, 1, 1),
    }
    constants += [numpy_helper.from_array(value, name) for name, value in normal.items()]
    nodes.append(helper.make_node("Sub", ["decoder/pixels", "decoder/mean"], ["decoder/centred"]))
    nodes.append(helper.make_node("Div", ["decoder/centred", "decoder/std"], [image]))
    rest = list(whole.graph.node)
    del whole.graph.node[:], whole.graph.input[:]
    whole.graph.node.extend([*nodes, *rest])
    whole.graph.initializer.extend(constants)
    whole.graph.input.append(helper.make_tensor_value_info(FILE, TensorProto.UINT8, ["bytes"]))
    whole.opset_import.append(helper.make_opsetid(EXTENSIONS, 1))
    for entry in whole.metadata_props:
        if entry.key == "input":
            entry.value = "jpeg"
    onnx.checker.check_model(whole)
    return whole


def open_with_decoder(path: Path) -> Any:
    """A session of onnxruntime. Raises ValueError: the package that decodes is not installed."""
    onnxruntime = load_runtime()
    try:
        import onnxruntime_extensions
    except ImportError as error:
        raise ValueError(
            f"--input jpeg needs the package onnxruntime-extensions ({error}); install it with: "
            "pip install 'must-clip[jpeg]'"
        ) from None
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.register_custom_ops_library(onnxruntime_extensions.get_library_path())
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def compare_files(path: Path, classifier: OnnxClassifier, files: list[bytes], max_pixels: int) -> dict[str, Any]:
    """The file with the decoder against the decoder of `must predict` and the model, on pictures as they are stored.

    `images` compared, `left_out` (not JPEG or PNG, turned by EXIF, or with transparency or colours that are not RGB or
    grey), `agreement`, `largest_difference` of a probability, smallest `cosine` of embeddings where there are any.

    Raises:
        ValueError: none could be compared, or they differ by more than TOLERANCE, or COSINE.
    """
    session, view = open_with_decoder(path), EvalView(classifier.preprocess)
    differences, agree, cosines = [], [], []
    for data in files:
        if not is_plain(data, max_pixels):
            continue
        (expected,), embedding = classifier.answer(seen(data, view, max_pixels)[None], bool(classifier.dimensions))
        found = session.run(None, {FILE: np.frombuffer(data, np.uint8)})
        differences.append(float(np.abs(found[0][0] - expected).max()))
        agree.append(bool(expected[found[0][0].argmax()] >= expected.max() - TOLERANCE))
        if embedding is not None:
            cosines.append(smallest_cosine(embedding, found[1]))
    require(bool(agree), "--input jpeg: none of the images is a plain JPEG or PNG, which the graph could decode")
    result = {
        "images": len(agree),
        "left_out": len(files) - len(agree),
        "agreement": float(np.mean(agree)),
        "largest_difference": max(differences),
        **({"cosine": min(cosines)} if cosines else {}),
    }
    require(
        all(agree) and max(differences) <= TOLERANCE,
        f"--input jpeg: the file's probabilities differ from those of `must predict` by up to {max(differences):.3f} "
        f"({TOLERANCE} is allowed), its class on {100 - 100 * result['agreement']:.1f}% of {len(agree)} images; "
        "nothing was written",
    )
    cosine = min(cosines, default=1.0)
    require(
        cosine >= COSINE,
        f"--input jpeg: the file's embeddings are not those of `must predict`: the smallest cosine of the two is "
        f"{cosine:.4f}, {COSINE} is needed; nothing was written",
    )
    return result


def is_plain(data: bytes, max_pixels: int) -> bool:
    """Whether the graph and `must predict` are about the same picture."""
    try:
        image = identify(data, max_pixels)
    except ValueError:
        return False
    modes = {"JPEG": ("RGB",), "PNG": ("RGB", "L")}.get(image.format, ())
    return image.mode in modes and "transparency" not in image.info and orientation(image) == 1
