"""The model as an ONNX graph: only what classifying needs, with a dynamic batch."""

import contextlib
import io
import json
import logging
import warnings
from collections.abc import Iterator
from typing import Any

import onnx
import torch

from must.base.console import quieted
from must.base.errors import UserError
from must.data.image.preprocess import describe_preprocess
from must.deploy.export.deployed import InferenceModel
from must.deploy.predict.session import EMBEDDING
from must.method.model.bundle import Bundle, preprocess_of

INPUT, OUTPUT = "image", "probability"
OPSET = 18
PROTOBUF_LIMIT = 2**31
METADATA_KEYS = (
    "classes", "preprocess", "preprocess_text", "logit_factor", "backbone", "pretrained", "templates", "must_version",
    "provenance",
)  # fmt: skip


def to_graph(bundle: Bundle, uint8: bool = False, embeddings: bool = False) -> onnx.ModelProto:
    """The ONNX model in float32; with `embeddings` it has them as a second output.

    Raises:
        ValueError: the model is too large for one ONNX file.
    """
    preprocess = preprocess_of(bundle.description)
    size = preprocess.size
    module = InferenceModel(bundle.model, preprocess, uint8, embeddings).eval()
    # two images: torch.export takes an example's batch of one for a constant
    example = torch.zeros((2, size, size, 3), dtype=torch.uint8) if uint8 else torch.zeros(2, 3, size, size)
    weights = sum(value.numel() * value.element_size() for value in bundle.model.state_dict().values())
    if weights > PROTOBUF_LIMIT * 0.95:
        raise UserError(f"the model has {weights / 1e9:.1f} GB, one ONNX file can hold 2")
    with quiet_exporter(), torch.no_grad():
        program = torch.onnx.export(
            module,
            (example,),
            dynamo=True,
            opset_version=OPSET,
            input_names=[INPUT],
            output_names=[OUTPUT, EMBEDDING] if embeddings else [OUTPUT],
            dynamic_shapes={"image": {0: torch.export.Dim("batch", min=1, max=4096)}},
            verbose=False,
        )
    assert program is not None
    graph = program.model_proto
    strip_tracing_notes(graph)
    return graph


def check_graph(graph: onnx.ModelProto) -> None:
    """onnx.checker with shape inference, and no operator but the standard's: what any ONNX runtime asks for."""
    onnx.checker.check_model(graph, full_check=True)
    foreign = {node.domain for node in graph.graph.node} - {"", "ai.onnx"}
    assert not foreign, f"operators of {foreign}"


def add_metadata(graph: onnx.ModelProto, bundle: Bundle, **extra: Any) -> None:
    """Writes what a server or a reader must know into metadata_props; values that are not strings as JSON."""
    description = bundle.description.to_dict()
    description["preprocess_text"] = describe_preprocess(preprocess_of(bundle.description))
    values = {name: description[name] for name in METADATA_KEYS} | extra
    used = {node.domain for node in graph.graph.node}
    sets = [entry for entry in graph.opset_import if entry.domain in used]  # the quantizer adds those of its own tools
    del graph.opset_import[:], graph.metadata_props[:]
    graph.opset_import.extend(sets)
    for key, value in values.items():
        graph.metadata_props.add(key=key, value=value if isinstance(value, str) else json.dumps(value))
    graph.producer_name, graph.producer_version = "must", description["must_version"]
    graph.doc_string = "CLIP image classifier, adapted without labels (MUST, arXiv 2206.02967)"


def strip_tracing_notes(graph: onnx.ModelProto) -> None:
    """Removes the exporter's notes: stack traces with file names of the machine it ran on."""
    del graph.metadata_props[:]
    del graph.graph.metadata_props[:]
    for node in graph.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    for value in [*graph.graph.input, *graph.graph.output, *graph.graph.value_info, *graph.graph.initializer]:
        del value.metadata_props[:]
        value.doc_string = ""
    for function in graph.functions:
        del function.metadata_props[:]
        for node in function.node:
            del node.metadata_props[:]


@contextlib.contextmanager
def quiet_exporter() -> Iterator[None]:
    """The exporter's progress lines and warnings are of no use to a user; its errors still come through."""
    loggers = ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")
    with quieted(logging.ERROR, *loggers), warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield
