"""What is exported says what PyTorch says."""

import json
import tempfile
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image

from must.api.demo import CLASSES
from must.base import storage
from must.base.program import find_exit_code
from must.config import ExportConfig
from must.data.augment import normalize
from must.data.image.preprocess import normalize_pixels
from must.exporting import graph
from must.exporting.export import (
    LEAST_COSINE,
    ParityError,
    compare,
    compute_reference,
    export,
    find_smallest_cosine,
    require_check,
)
from must.model.bundle import load_bundle
from must.model.description import RunSummary, get_preprocess
from must.prediction.onnx_model import OnnxClassifier
from tests.evaluation.digits import decode_pixels
from tests.exporting.conftest import files_up_to


@pytest.fixture(scope="module")
def real(digits):
    """Of test images: pixels [24, S, S, 3], PyTorch's probabilities [24, K], unit features [24, D]; preprocessing."""
    bundle = load_bundle(digits.adapted)
    files = sorted((digits.images / "test").rglob("*.png"))[::5]
    pixels = decode_pixels(bundle, [Image.open(path) for path in files])
    preprocess = get_preprocess(bundle.description)
    images = normalize(torch.from_numpy(pixels), preprocess)
    with torch.no_grad():
        probability, features = bundle.model(images).softmax(-1), bundle.model.visual(images)
    return pixels, probability.numpy(), (features / features.norm(dim=1, keepdim=True)).numpy(), preprocess


def run(folder, inputs):
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"), providers=["CPUExecutionProvider"])
    return session.run(["probability"], {"image": inputs})[0]


@pytest.mark.parametrize("batch", [1, 24])
def test_any_batch_size_gives_pytorchs_probabilities(exported, real, batch):
    pixels, expected, _, preprocess = real
    got = run(exported[1], normalize_pixels(pixels[:batch], preprocess))
    assert got.dtype == np.float32 and got.shape == (batch, 10)
    np.testing.assert_allclose(got, expected[:batch], atol=1e-5)
    np.testing.assert_allclose(got.sum(1), 1, atol=1e-5)


def test_the_file_tells_what_a_server_must_know(exported, digits):
    result, folder = exported
    model = onnx.load(folder / "model.onnx")
    onnx.checker.check_model(model, full_check=True)
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    bundle = load_bundle(digits.adapted)
    assert json.loads(metadata["classes"]) == list(CLASSES)
    assert json.loads(metadata["preprocess"]) == bundle.description.preprocess
    assert float(metadata["logit_factor"]) == pytest.approx(bundle.description.logit_factor)
    assert json.loads(metadata["provenance"])["config"]["epochs"] == 3
    assert metadata["precision"] == "fp32" and metadata["input"] == "normalized"
    assert "resize the shorter side to 32" in metadata["preprocess_text"]
    assert (folder / "labels.txt").read_text().splitlines() == list(CLASSES)
    assert result["check"]["agreement"] == 1 and result["check"]["images"] == 40
    shape = model.graph.input[0].type.tensor_type.shape.dim
    assert shape[0].dim_param and [d.dim_value for d in shape[1:]] == [3, 32, 32]


def test_nothing_of_training_or_of_this_machine_is_inside(exported, digits):
    model = onnx.load(exported[1] / "model.onnx")
    stored = sum(int(np.prod(tensor.dims)) for tensor in model.graph.initializer)
    network = load_bundle(digits.adapted).model
    needed = sum(p.numel() for p in network.visual.parameters()) + network.classifier.numel()
    assert needed <= stored < needed + 200, "the mask token, decoder and patch LayerNorm have more than 200 numbers"
    assert sum(p.numel() for p in network.decoder.parameters()) + network.mask_token.numel() > 200
    assert all(not node.metadata_props and not node.doc_string for node in model.graph.node)
    for tensor in model.graph.initializer:
        tensor.ClearField("raw_data")  # among millions of weights any four bytes turn up
    assert b".py" not in model.SerializeToString(), "no stack traces of the exporter"


def test_the_same_training_gives_the_same_file(digits, exported):
    """Nothing in it is of a single run, and it names its weights."""
    bundle, files = load_bundle(digits.adapted), []
    model, provenance = onnx.load(exported[1] / "model.onnx"), bundle.description.provenance
    for seconds in (9.5, 11.0):
        run = {"summary": RunSummary(30, 1200, seconds), "config": provenance.config | {"output": f"runs/{seconds}"}}
        graph.add_metadata(model, replace(bundle.description, provenance=replace(provenance, **run)))
        files.append(model.SerializeToString())
    assert files[0] == files[1] and b"runs/" not in files[0]
    assert storage.compute_sha256(Path(digits.adapted, "model.safetensors")).encode() in files[0]


@pytest.mark.slow
def test_int8_calibrated_on_images(digits, real, tmp_path, exported):
    """With pixels as input and embeddings at the same time: all run through the same graph."""
    values = {"model": digits.adapted, "shards": digits.shards, "limit": 100, "input": "uint8", "embeddings": True}
    result = export(ExportConfig(**values, output=str(tmp_path), precision="int8"))
    pixels, expected, *_ = real
    assert LEAST_COSINE["int8"] < 0.99 < result["check"]["cosine"] < 1
    for batch in (1, 3, 8, 24):
        got = run(tmp_path, pixels[:batch])
        np.testing.assert_allclose(got, expected[:batch], atol=0.15)
    assert (got.argmax(1) == expected.argmax(1)).mean() >= 0.95
    model = onnx.load(tmp_path / "model.onnx")
    onnx.checker.check_model(model, full_check=True)
    operators = [(entry.domain, entry.version) for entry in model.opset_import]
    assert operators == [("", 18)], "the standard's only"
    sizes = [(folder / "model.onnx").stat().st_size for folder in (tmp_path, exported[1])]
    assert sizes[0] < 0.4 * sizes[1]
    assert result["check"]["agreement"] >= 0.97 and "int8" in result["arithmetic"]


@pytest.mark.slow
def test_int8_without_images_quantizes_dynamically(digits, tmp_path, real):
    result = export(ExportConfig(model=digits.adapted, output=str(tmp_path), precision="int8", min_agreement=0.5))
    assert "dynamic" in result["arithmetic"]
    pixels, expected, _, preprocess = real
    got = run(tmp_path, normalize_pixels(pixels, preprocess))
    assert (got.argmax(1) == expected.argmax(1)).mean() >= 0.95


def test_a_file_of_another_model_is_refused(digits, embedded, real):
    pixels, _, features, _ = real
    bundle, other = load_bundle(digits.adapted), load_bundle(digits.zero_shot)
    classifier = OnnxClassifier(embedded / "model.onnx")
    config = ExportConfig(model=digits.adapted, output="out", embeddings=True)
    probability, same = compute_reference(bundle, pixels)
    np.testing.assert_allclose(same, features, atol=1e-5)
    check = compare(probability, classifier, pixels, features)
    require_check(check, config)
    assert check.cosine > 0.99999 and "smallest cosine of an embedding" in check.line()
    for wrong in (np.roll(features, 1, axis=1), compute_reference(other, pixels)[1], features[:, :-1]):
        with pytest.raises(ParityError, match=r"PyTorch: an embedding has the cosine .*, needed 0.9999; nothing was"):
            require_check(compare(probability, classifier, pixels, wrong), config)
    rounded = replace(config, precision="int8")
    require_check(replace(check, cosine=0.96, agreement=0.97), rounded)
    with pytest.raises(ParityError, match=r"PyTorch: the same class on 96.00% of \d+ images, needed 97%; nothing"):
        require_check(replace(check, agreement=0.96), rounded)
    assert find_smallest_cosine(features, 1.01 * features) == find_smallest_cosine(features, features * np.nan) == -1
    check = compare(compute_reference(other, pixels)[0], classifier, pixels)
    assert check.agreement < 1
    with pytest.raises(ParityError, match="nothing was written"):
        require_check(check, config)
    require_check(check, ExportConfig(model="m", output="out", precision="int8", min_agreement=0.01))
    with pytest.raises(ParityError, match=r"PyTorch: a probability differs by .*, allowed") as error:
        require_check(replace(check, agreement=1.0), config)
    assert find_exit_code(error.value) == 1, "the input is not wrong"


def test_embeddings_change_nothing_else_of_the_graph(embedded, exported, real):
    """Not one weight and not one node: the embedding lies on the way to the probabilities."""
    plain, more = (onnx.load(folder / "model.onnx") for folder in (exported[1], embedded))
    assert [output.name for output in plain.graph.output] == ["probability"]
    assert [output.name for output in more.graph.output] == ["probability", "embedding"]
    assert [node.op_type for node in plain.graph.node] == [node.op_type for node in more.graph.node]
    assert plain.graph.initializer == more.graph.initializer
    metadata = [{entry.key: entry.value for entry in model.metadata_props} for model in (plain, more)]
    assert json.loads(metadata[1].pop("embedding")) == {"dimensions": 64, "length": 1} and metadata[0] == metadata[1]
    pixels, _, features, _ = real
    outputs = [OnnxClassifier(folder / "model.onnx").outputs(pixels) for folder in (exported[1], embedded)]
    assert [len(values) for values in outputs] == [1, 2]
    np.testing.assert_allclose(outputs[1][0], outputs[0][0], atol=1e-6)
    np.testing.assert_allclose(outputs[1][1], features, atol=1e-5)
    onnx.checker.check_model(more, full_check=True)
    text, without = ((folder / "README.md").read_text() for folder in (embedded, exported[1]))
    assert "`probability`, and `embedding`: float32 [N, 64]" in text and "embedding" not in without


def test_a_full_temporary_folder_is_named(digits, exported, tmp_path):
    _, folder = exported
    graph.to_graph(load_bundle(digits.adapted))  # traced once for all tests, and stored: not below the limit
    message = f"^{tempfile.gettempdir()}: larger than a file may be here"
    with files_up_to(100_000), pytest.raises(ValueError, match=message):
        export(ExportConfig(model=digits.adapted, output=str(tmp_path / "out")))
    assert not (tmp_path / "out").exists()
    model, preprocess = onnx.load(folder / "model.onnx"), get_preprocess(load_bundle(digits.adapted).description)
    with pytest.raises(ValueError, match=f"^{tempfile.gettempdir()}: quantizing needs "):
        graph.quantize(model, None, preprocess, Path("/proc"))  # which has no room


def test_an_export_that_breaks_leaves_no_folder_that_looks_complete(digits, tmp_path, monkeypatch):
    import must.exporting.export as module

    (tmp_path / "notes.txt").write_text("of somebody else")
    (tmp_path / "model.onnx").write_bytes(b"of an earlier export")
    config = ExportConfig(model=digits.adapted, output=str(tmp_path), limit=8)
    with monkeypatch.context() as patch, pytest.raises(OSError, match="the disk is gone"):
        patch.setattr(module, "encode_utf8", Mock(side_effect=OSError("the disk is gone")))
        export(config)
    assert not (tmp_path / "model.onnx").exists()
    export(config)
    names = {"model.onnx", "labels.txt", "README.md", "notes.txt"}
    assert {path.name for path in tmp_path.iterdir()} == names
