"""`must export --embeddings`: the file's second output is PyTorch's feature; without the flag there is none."""

import json
from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch
from PIL import Image

from must.config import ExportConfig
from must.deploy.export.export import compare, reference, require_check, smallest_cosine
from must.deploy.predict.session import OnnxClassifier
from must.method.model.bundle import load_bundle
from tests.evaluation.digits import decode_pixels


@pytest.fixture(scope="module")
def real(digits):
    """(uint8 pixels [24, S, S, 3], PyTorch's unit features [24, D]) of test images, by the tower and a division."""
    bundle = load_bundle(digits.adapted)
    pixels = decode_pixels(bundle, [Image.open(path) for path in sorted((digits.images / "test").rglob("*.png"))[::5]])
    preprocess = bundle.description.preprocess
    mean, std = (torch.tensor(preprocess[name]).view(3, 1, 1) for name in ("mean", "std"))
    with torch.no_grad():
        features = bundle.model.visual((torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255 - mean) / std)
    return pixels, (features / features.norm(dim=1, keepdim=True)).numpy()


def test_nothing_else_of_the_graph_changes(embedded, exported, real):
    """Not one weight and not one node: the embedding lies on the way to the probabilities."""
    plain, more = (onnx.load(folder / "model.onnx") for folder in (exported[1], embedded))
    assert [output.name for output in plain.graph.output] == ["probability"]
    assert [output.name for output in more.graph.output] == ["probability", "embedding"]
    assert [node.op_type for node in plain.graph.node] == [node.op_type for node in more.graph.node]
    assert plain.graph.initializer == more.graph.initializer
    metadata = [{entry.key: entry.value for entry in model.metadata_props} for model in (plain, more)]
    assert json.loads(metadata[1].pop("embedding")) == {"dimensions": 64, "length": 1} and metadata[0] == metadata[1]
    pixels, expected = real
    outputs = [OnnxClassifier(folder / "model.onnx").outputs(pixels) for folder in (exported[1], embedded)]
    assert np.array_equal(outputs[0][0], outputs[1][0]) and [len(values) for values in outputs] == [1, 2]
    np.testing.assert_allclose(outputs[1][1], expected, atol=1e-5)
    assert "dimensions" not in exported[0] and "cosine" not in exported[0]["check"]
    onnx.checker.check_model(more, full_check=True)


def test_another_models_embeddings_are_refused(digits, embedded, real):
    pixels, expected = real
    classifier, bundle = OnnxClassifier(embedded / "model.onnx"), load_bundle(digits.adapted)
    config = ExportConfig(model="m", output="out", embeddings=True)
    probability, features = reference(bundle, pixels)
    np.testing.assert_allclose(features, expected, atol=1e-5)
    check = compare(probability, classifier, pixels, features)
    require_check(check, config)
    assert check.cosine > 0.99999 and "smallest cosine of an embedding" in check.line()
    turned = np.roll(features, 1, axis=1)
    for other in (turned, reference(load_bundle(digits.zero_shot), pixels)[1]):
        with pytest.raises(ValueError, match=r"cosine of an embedding .* a cosine of 0.9999; nothing was written"):
            require_check(compare(probability, classifier, pixels, other), config)
    require_check(replace(check, cosine=0.96), replace(config, precision="int8"))
    assert smallest_cosine(features, 1.01 * features) == smallest_cosine(features, features * np.nan) == -1


def test_a_file_that_gives_none_where_they_were_asked_for_is_refused(digits, exported, real):
    bundle, classifier = load_bundle(digits.adapted), OnnxClassifier(exported[1] / "model.onnx")
    check = compare(reference(bundle, real[0])[0], classifier, real[0], real[1])
    with pytest.raises(ValueError, match="nothing was written"):
        require_check(check, ExportConfig(model="m", output="out", embeddings=True))


def test_the_cards_say_so(embedded, exported):
    for name in ("MODEL_CARD.md", "README.md"):
        text, plain = ((folder / name).read_text() for folder in (embedded, exported[1]))
        assert "`probability`, and `embedding`: float32 [N, 64]." in text
        assert "smallest cosine of an embedding 1.000000" in text and "embedding" not in plain
