"""The network for inference (image tower and classifier), and its ONNX graph, of any batch size, in float32 or int8.

Shapes: B images, Q and L tokens, W width, H heads, D embedding, K classes."""

import contextlib
import copy
import io
import json
import logging
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from must.base.console import quieted
from must.base.parameters import require
from must.data.image.preprocess import Preprocess, describe_preprocess, normalize_pixels
from must.model.bundle import Bundle
from must.model.description import Description, get_preprocess
from must.model.memory import flatten_tokens
from must.model.towers import ClipTower, SelfAttention, is_residual
from must.prediction.onnx_model import EMBEDDING, LARGEST_MODEL, SIMILARITY, load_runtime


class InferenceModel(nn.Module):
    """Images -> class probabilities float32 [B, K]. Without mask token, patch LayerNorm and decoder.

    A bundle with a memory gives probabilities that include its neighbours' votes, and as the second output `similarity`
    float32 [B], from 0 (an image unlike any in the memory, which has no votes) to 1. With `embeddings`, the last output
    is the classifier's input, the images' features: float32 [B, D], length 1.
    Images are float32 [B, 3, S, S], normalised; or, with `uint8`, uint8 [B, S, S, 3] pixels that the graph normalises.
    """

    mean: Tensor
    std: Tensor
    classifier: Tensor

    def __init__(self, bundle: Bundle, uint8: bool, embeddings: bool = False) -> None:
        super().__init__()
        # A copy of the modules, which shares the weights.
        model = copy.deepcopy(bundle.model, {id(weights): weights for weights in bundle.model.parameters()})
        self.visual, self.tower, self.memory = model.visual, model.tower, bundle.memory
        preprocess, blocks = get_preprocess(bundle.description), list[Any](model.tower.blocks)
        # Towers of other blocks than open_clip's plain ones with this library's attention are used unchanged.
        plain = all(is_residual(block) and isinstance(block.attn, SelfAttention) for block in blocks)
        for block in blocks if plain and type(model.tower) is ClipTower else ():
            block.attn = SplitAttention(block.attn)
        self.register_buffer("classifier", model.logit_factor * model.classifier.detach())  # [D, K]
        self.uint8, self.embeddings = uint8, embeddings
        self.register_buffer("mean", torch.tensor(preprocess.mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(preprocess.std).view(1, 3, 1, 1))

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        if self.uint8:
            image = (image.permute(0, 3, 1, 2).float() / 255 - self.mean) / self.std
        last, tokens = self.tower.forward_neighbours(image)
        feature = F.normalize(self.tower.feature(last), dim=-1)
        outputs: tuple[Tensor, ...] = ((feature @ self.classifier).softmax(dim=-1),)
        if self.memory:
            outputs = self.memory(outputs[0], self.memory.join(flatten_tokens(self.tower, tokens), feature))
        return (*outputs, feature) if self.embeddings else outputs


class SplitAttention(SelfAttention):
    """Attention with three projections for q, k and v. Splitting the single projection of training would need several
    ONNX nodes per block, which copy data at run time."""

    def __init__(self, attention: SelfAttention) -> None:
        nn.Module.__init__(self)
        self.num_heads, self.out_proj = attention.num_heads, attention.out_proj
        weights, biases = attention.in_proj_weight.chunk(3), attention.in_proj_bias.chunk(3)
        scale = (weights[0].shape[0] // self.num_heads) ** -0.5
        self.query = make_linear(scale * weights[0], scale * biases[0])
        self.key, self.value = make_linear(weights[1], biases[1]), make_linear(weights[2], biases[2])

    def attended(self, query: Tensor, key: Tensor) -> Tensor:
        """Tokens [B, Q, W], which attend to the tokens `key` [B, L, W] -> [B, Q, W]."""
        projected = self.query(query), self.key(key), self.value(key)
        q, k, v = (x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for x in projected)  # [B, H, tokens, W / H]
        mixed = (q @ k.transpose(-2, -1)).softmax(dim=-1) @ v
        return self.out_proj(mixed.transpose(1, 2).flatten(2))


def make_linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0])
    layer.weight.data, layer.bias.data = weight.detach().contiguous(), bias.detach().contiguous()
    return layer


INPUT, OUTPUT = "image", "probability"
OPSET = 18
RECORDED = ("preset", "epochs", "batch_size", "lr", "seed")  # parameters of the training in the metadata
METADATA_KEYS = (
    "classes", "preprocess", "logit_factor", "backbone", "pretrained", "templates", "must_version", "weights_sha256",
)  # fmt: skip


def to_graph(bundle: Bundle, uint8: bool = False, embeddings: bool = False) -> onnx.ModelProto:
    """The ONNX model in float32, with the outputs of InferenceModel."""
    preprocess = get_preprocess(bundle.description)
    size = preprocess.size
    module = InferenceModel(bundle, uint8, embeddings).eval()
    outputs = [OUTPUT, *([SIMILARITY] if bundle.memory else []), *([EMBEDDING] if embeddings else [])]
    # Two images: torch.export treats a batch size of one in the example as a constant.
    example = torch.zeros((2, size, size, 3), dtype=torch.uint8) if uint8 else torch.zeros(2, 3, size, size)
    weights = sum(value.numel() * value.element_size() for value in bundle.model.state_dict().values())
    require(weights <= LARGEST_MODEL, f"the model has {weights / 1e9:.1f} GB, one ONNX file can hold 2")
    with quiet_exporter(), torch.no_grad():
        program = torch.onnx.export(
            module,
            (example,),
            dynamo=True,
            opset_version=OPSET,
            input_names=[INPUT],
            output_names=outputs,
            dynamic_shapes={"image": {0: torch.export.Dim("batch", min=1, max=4096)}},
            verbose=False,
        )
    assert program is not None
    graph = program.model_proto
    strip_tracing_notes(graph)
    return graph


def check_graph(graph: onnx.ModelProto) -> None:
    """Runs onnx.checker with shape inference; requires that all operators are of the ONNX standard."""
    onnx.checker.check_model(graph, full_check=True)
    foreign = {node.domain for node in graph.graph.node} - {"", "ai.onnx"}
    assert not foreign, f"operators of {foreign}"


def add_metadata(graph: onnx.ModelProto, description: Description, **extra: Any) -> None:
    """Writes the description of the model into metadata_props; values that are not strings as JSON.

    Nothing of a single run (paths, times, speed): the same training gives the same file."""
    provenance = description.provenance
    values = {name: getattr(description, name) for name in METADATA_KEYS} | extra
    values["preprocess_text"] = describe_preprocess(get_preprocess(description))
    values["provenance"] = {
        "index_sha256": provenance.index_sha256,
        "index_revision": provenance.index_revision,
        "alpha": provenance.selection.alpha if provenance.selection else None,
        "config": {name: provenance.config[name] for name in RECORDED if name in provenance.config},
    }
    used = {node.domain for node in graph.graph.node}
    sets = [entry for entry in graph.opset_import if entry.domain in used]  # without unused ones of the quantizer
    del graph.opset_import[:], graph.metadata_props[:]
    graph.opset_import.extend(sets)
    for key, value in values.items():
        graph.metadata_props.add(key=key, value=value if isinstance(value, str) else json.dumps(value))
    graph.producer_name, graph.producer_version = "must", description.must_version
    graph.doc_string = "CLIP image classifier, adapted without labels (MUST, arXiv 2206.02967)"


def strip_tracing_notes(graph: onnx.ModelProto) -> None:
    """Removes the exporter's metadata: stack traces with file names of this machine."""
    functions, main = list(graph.functions), graph.graph
    nodes = [*main.node, *(node for function in functions for node in function.node)]
    values = [*main.input, *main.output, *main.value_info, *main.initializer]
    for part in (graph, main, *functions, *nodes, *values):
        del part.metadata_props[:]
        part.doc_string = ""


@contextlib.contextmanager
def quiet_exporter() -> Iterator[None]:
    """Hides the exporter's progress lines and warnings, which do not help a user; its errors are still raised."""
    loggers = ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")
    with quieted(logging.ERROR, *loggers), warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield


CALIBRATION_BATCH = 16
QUANTIZER_FILES = 4  # free space for its temporary files, in sizes of the float model; measured: at most 3


@quieted(logging.ERROR, "")  # the quantizer logs its advice to the root logger
def quantize(
    graph: onnx.ModelProto, pixels: np.ndarray | None, preprocess: Preprocess, folder: Path
) -> tuple[onnx.ModelProto, str]:
    """(the int8 model by onnxruntime's quantization, static if there are images for calibration; a description of it).

    Weights are quantized per output channel, activations per tensor, in the matrix products of the blocks. The patch
    embedding, LayerNorms, attention's softmax and the classifier stay in float32: they are a small part of the
    computation and would cause most of the error. The runtime does not notice a full disk, and reads truncated files.

    `pixels`: uint8 [N, S, S, 3] for calibration; None: activations are quantized at run time, image by image;
    `folder`: for intermediate files."""
    room = QUANTIZER_FILES * graph.ByteSize()
    require(
        shutil.disk_usage(folder).free >= room,
        f"{tempfile.gettempdir()}: quantizing needs {room / 1e6:.0f} MB for temporary files there; free some space or "
        "set TMPDIR to another folder",
    )
    load_runtime()
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_dynamic, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    source, prepared, target = (folder / f"{name}.onnx" for name in ("float", "prepared", "int8"))
    onnx.save(graph, source)
    quant_pre_process(source, prepared, skip_symbolic_shape=True)
    nodes = find_products(graph, onnx.load(prepared))
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


def find_products(graph: onnx.ModelProto, prepared: onnx.ModelProto) -> list[str]:
    """Names of the matrix products with a weight that the classifier's input is computed from: those of the tower's
    blocks. Neither the classifier nor the memory is among them."""
    weights = {value.name for value in graph.graph.initializer}
    makers = {name: node for node in graph.graph.node for name in node.output}
    inputs = [name for node in graph.graph.node if "classifier" in node.input for name in node.input]
    inner = set[str]()
    while inputs:
        node = makers.pop(inputs.pop(), None)
        if node is None:  # an input or a weight, or seen before
            continue
        inputs += node.input
        if node.op_type in ("MatMul", "Gemm") and weights.intersection(node.input[:2]):
            inner.add(node.name)
    return [node.name for node in prepared.graph.node if node.name in inner]


class Calibration:
    """Batches of the graph's input; implements onnxruntime's CalibrationDataReader."""

    def __init__(self, pixels: np.ndarray, preprocess: Preprocess, as_pixels: bool) -> None:
        parts = (pixels[start : start + CALIBRATION_BATCH] for start in range(0, len(pixels), CALIBRATION_BATCH))
        self.batches = ({INPUT: part if as_pixels else normalize_pixels(part, preprocess)} for part in parts)

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self.batches, None)
