"""Bundles without a trained model, ONNX files without a network: what the registry copies, and promoting them."""

import hashlib
import json
import multiprocessing
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from must.api.cli import main
from must.data.image.preprocess import Preprocess
from must.evaluation.result import Metrics, ModelRecord
from must.model.description import Description, Provenance
from must.registry.promote import Registry
from tests.common import ended
from tests.evaluation.measured import MEASURED


def weights(seed: int) -> bytes:
    header = json.dumps({"classifier": {"dtype": "U8", "shape": [800], "data_offsets": [0, 800]}}).encode().ljust(192)
    return len(header).to_bytes(8, "little") + header + bytes([seed]) * 800


def weights_sha256(seed: int) -> str:
    return hashlib.sha256(weights(seed)).hexdigest()


def measured(seed: int = 0, metrics: Metrics = MEASURED) -> Metrics:
    """Metrics of the bundle of that seed."""
    return replace(metrics, model=ModelRecord(weights_sha256=weights_sha256(seed)))


def make_bundle(
    folder: Path, seed: int = 0, revision: int = 0, classes: tuple[str, ...] = ("cat", "dog"), pretrained: str = "",
    **origin: str,
) -> Path:  # fmt: skip
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(weights(seed))
    description = Description(
        architecture={}, backbone="tiny", pretrained=pretrained, classes=list(classes), templates=["a {}"],
        preprocess={}, logit_factor=100.0, weights_sha256=weights_sha256(seed),
        provenance=Provenance(index_sha256=f"sha{revision}", index_revision=revision, git_revision="abc", **origin),
    )  # fmt: skip
    (folder / "model.json").write_text(json.dumps(description.to_dict()))
    (folder / "train.log").write_text("not part of the model")
    return folder


def make_onnx(path: Path, name: str = "onnx", seed: int = 0) -> bytes:
    """A file of `name`, whose classes are the three colours, of the bundle of that seed. Returns its bytes."""
    import onnx
    from onnx import TensorProto, helper

    nodes = [helper.make_node("ReduceMean", ["image", "sides"], ["mean"], keepdims=0)]
    nodes.append(helper.make_node("Softmax", ["mean"], ["probability"]))
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", 3, 8, 8])
    probability = helper.make_tensor_value_info("probability", TensorProto.FLOAT, ["n", 3])
    sides = helper.make_tensor("sides", TensorProto.INT64, [2], [2, 3])
    graph = helper.make_graph(nodes, name, [image], [probability], [sides])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    metadata = {"classes": json.dumps(["red", "green", "blue"]), "preprocess": json.dumps(Preprocess(size=8).to_dict())}
    helper.set_model_props(model, metadata | {"weights_sha256": weights_sha256(seed)})
    path.parent.mkdir(exist_ok=True)
    onnx.save(model, path)
    return path.read_bytes()


EVERYWHERE = pytest.mark.parametrize("registry", ["local", "bucket"], indirect=True)
"""For what depends on the store that the registry lies in."""


def promote(registry, *flags, name="digits"):
    main(["promote", "--registry", str(registry), "--name", name, *map(str, flags)])


def refused(capsys, code, registry, *flags, name="digits"):
    """The one line that a promotion prints which ends with this code."""
    capsys.readouterr()  # of promotions before
    return ended(capsys, code, partial(promote, name=name), registry, *flags)


def exit_code(registry, flags):
    try:
        promote(registry, *flags)
    except SystemExit as error:
        return error.code
    return 0


def at_once(registry, *flags_of_each):
    """Exit codes of promotions in processes of their own, all at once."""
    context, count = multiprocessing.get_context("fork"), len(flags_of_each)
    with context.Pool(count, initializer=context.Barrier(count).wait) as pool:
        return pool.starmap(exit_code, [(registry, flags) for flags in flags_of_each], chunksize=1)


def latest(registry):
    return Registry(str(registry), "digits").latest()
