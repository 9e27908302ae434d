"""Smaller arithmetic. fp16: half floats, but for the two ends of the graph. int8: onnxruntime's static quantization,
calibrated on real images; dynamic where there is nothing to calibrate on.

int8 weights are quantized per output channel, activations per tensor, in the matrix products of the blocks. The patch
embedding, LayerNorms, attention's softmax and the classifier stay in float32: they are a small part of the work and
most of the error.
"""

import logging
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx

from must.base.console import quieted
from must.data.image.preprocess import Preprocess, normalize_pixels
from must.deploy.export.graph import INPUT
from must.deploy.predict.session import load_runtime

CALIBRATION_BATCH = 16


@quieted(logging.ERROR, "")  # the quantizer logs its advice to the root logger
def quantize(
    graph: onnx.ModelProto, pixels: np.ndarray | None, preprocess: Preprocess, folder: Path
) -> tuple[onnx.ModelProto, str]:
    """The int8 model and what was done, in words.

    Args:
        pixels: uint8 [N, S, S, 3] to calibrate on; None quantizes activations as they come, image by image.
        folder: for intermediate files.
    """
    load_runtime()
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_dynamic, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    source, prepared, target = (folder / f"{name}.onnx" for name in ("float", "prepared", "int8"))
    onnx.save(graph, source)
    quant_pre_process(source, prepared, skip_symbolic_shape=True)
    nodes = products_with_weights(onnx.load(prepared))
    options = {"per_channel": True, "weight_type": QuantType.QInt8, "nodes_to_quantize": nodes}
    if pixels is None:
        quantize_dynamic(prepared, target, **options)
        return onnx.load(target), "int8 weights, activations quantized as they come (dynamic)"
    as_pixels = graph.graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.UINT8
    quantize_static(
        prepared,
        target,
        Calibration(pixels, preprocess, as_pixels),
        quant_format=QuantFormat.QDQ,
        activation_type=QuantType.QUInt8,
        **options,
    )
    return onnx.load(target), f"int8 weights and activations (static, calibrated on {len(pixels)} images)"


def to_half(graph: onnx.ModelProto) -> onnx.ModelProto:
    """Weights and arithmetic in float16; input and output stay float32, and so does what would lose too much.

    That is the normalisation of uint8 pixels before the patch embedding, and everything from the feature's norm on:
    a logit of up to 100 in float16 has steps of 0.06, which is 6% of a probability. LayerNorm's mean and variance are
    taken in float32 too (onnxruntime 1.32 crashes on the CPU when it fuses a half LayerNorm).
    """
    load_runtime()
    from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST, convert_float_to_float16
    from onnxruntime.transformers.onnx_model import OnnxModel

    kinds = [node.op_type for node in graph.graph.node]
    first, last = kinds.index("Conv"), kinds.index("ReduceL2")
    outside = [node.name for node in [*graph.graph.node[:first], *graph.graph.node[last:]]]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about weights that underflow to the smallest half float
        half = convert_float_to_float16(
            graph,
            keep_io_types=True,
            op_block_list=[*DEFAULT_OP_BLOCK_LIST, "LayerNormalization"],
            node_block_list=outside,
        )
    drop_round_trips(half)
    model = OnnxModel(half)
    model.topological_sort()  # the conversion appends its casts after the nodes that read them,
    del half.graph.value_info[:]  # and leaves notes of the types there were
    return half


def drop_round_trips(graph: onnx.ModelProto) -> None:
    """Takes out each cast to half floats that is read by nothing but casts back: between two operators that stay in
    float32 the conversion rounds what passes, logits included."""
    casts = {node.output[0]: node for node in graph.graph.node if node.op_type == "Cast"}
    kept = {name: node.attribute[0].i for name, node in casts.items()}
    source: dict[str, str] = {}
    for name, node in casts.items():
        before = node.input[0]
        if kept[name] == onnx.TensorProto.FLOAT and kept.get(before) == onnx.TensorProto.FLOAT16:
            source[name] = casts[before].input[0]
    outputs = {value.name for value in graph.graph.output}
    for node in graph.graph.node:
        for place, name in enumerate(node.input):
            if name in source and name not in outputs:
                node.input[place] = source[name]
    while True:
        read = {name for node in graph.graph.node for name in node.input} | outputs
        idle = [node for node in graph.graph.node if node.op_type == "Cast" and node.output[0] not in read]
        if not idle:
            return
        for node in idle:
            graph.graph.node.remove(node)


def products_with_weights(graph: onnx.ModelProto) -> list[str]:
    """Names of the matrix products of an activation with a constant weight, but for the last: the classifier."""
    constants = {value.name for value in graph.graph.initializer}
    nodes = [
        node.name
        for node in graph.graph.node
        if node.op_type in ("MatMul", "Gemm") and any(name in constants for name in node.input[:2])
    ]
    return nodes[:-1]


class Calibration:
    """Batches of the graph's input, as onnxruntime's calibration asks for them."""

    def __init__(self, pixels: np.ndarray, preprocess: Preprocess, as_pixels: bool) -> None:
        self.pixels, self.preprocess, self.as_pixels = pixels, preprocess, as_pixels
        self.batches = self._batches()

    def _batches(self) -> Iterator[dict[str, np.ndarray]]:
        for start in range(0, len(self.pixels), CALIBRATION_BATCH):
            part = self.pixels[start : start + CALIBRATION_BATCH]
            yield {INPUT: part if self.as_pixels else normalize_pixels(part, self.preprocess)}

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self.batches, None)

    def rewind(self) -> None:
        self.batches = self._batches()
