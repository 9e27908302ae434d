"""The network and the memory in an ONNX file say what PyTorch says, for every kind of tower."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F

from must.data.augment import normalize
from must.data.image.preprocess import Preprocess
from must.exporting.graph import InferenceModel, SplitAttention, add_metadata, check_graph, quantize, to_graph
from must.model.backbone import build_visual, load_backbone
from must.model.bundle import Bundle
from must.model.description import Description
from must.model.masked_vit import MaskedViT
from must.prediction.onnx_model import OnnxClassifier
from tests.memory.remembering import remember
from tests.model.tiny import EMBED, SIZE, WIDTH, model_folder

PREPROCESS = Preprocess(size=SIZE)
CLASSES = 7
IMAGES = np.random.default_rng(0).integers(0, 256, (60, SIZE, SIZE, 3), np.uint8)


def remembering(family: str, folder: Path) -> Bundle:
    """A tiny random model with a memory of 60 images, 30 of them with an answer."""
    visual = load_backbone(model_folder(family, folder), "", with_tokenizer=False).clip.visual
    torch.manual_seed(0)
    columns = F.normalize(torch.randn(WIDTH if family == "siglip" else EMBED, CLASSES), dim=0)
    description = Description({}, family, "", list("abcdefg"), [], PREPROCESS.to_dict(), 10.0, weights_sha256=family)
    bundle = Bundle(MaskedViT(visual, columns, 10.0).eval(), description)
    return remember(bundle, normalize(torch.from_numpy(IMAGES), PREPROCESS), {row: row % CLASSES for row in range(30)})


@pytest.fixture(scope="module", params=["clip", pytest.param("siglip", marks=pytest.mark.slow)])
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple:
    """(bundle, its graph, whether it takes pixels)."""
    bundle = remembering(request.param, tmp_path_factory.mktemp("model") / "model")
    uint8 = request.param == "siglip"
    graph = to_graph(bundle, uint8=uint8)
    add_metadata(graph, bundle.description, input="uint8" if uint8 else "normalized")
    return bundle, graph, uint8


def pixels(count: int) -> np.ndarray:
    """Images of the memory, near to some of it, and unlike all."""
    near = (0.9 * IMAGES[10:12] + 0.1 * IMAGES[20:22]).astype(np.uint8)
    return np.concatenate([IMAGES[:2], near, np.zeros_like(near), np.roll(IMAGES[5:7], 9, 1)])[-count:]


def loaded(graph: onnx.ModelProto, folder: Path) -> OnnxClassifier:
    (folder / "model.onnx").write_bytes(graph.SerializeToString())
    return OnnxClassifier(folder / "model.onnx")


@pytest.mark.parametrize("batch", [1, 3, 8])
def test_probabilities_and_similarity_are_pytorchs(made: tuple, tmp_path: Path, batch: int) -> None:
    bundle, graph, uint8 = made
    check_graph(graph)
    assert [output.name for output in graph.graph.output] == ["probability", "similarity"]
    classifier, images = loaded(graph, tmp_path), pixels(batch)
    assert classifier.takes_pixels == uint8
    with torch.no_grad():
        probability, similarity, _ = bundle.classify(normalize(torch.from_numpy(images), PREPROCESS))
        bare = bundle.model(normalize(torch.from_numpy(images), PREPROCESS)).softmax(-1)
    found = classifier(images)
    np.testing.assert_allclose(found.probability, probability.numpy(), atol=1e-4)
    np.testing.assert_allclose(found.similarity, similarity.numpy(), atol=1e-3)
    if batch == 8:
        assert (probability - bare).abs().max() > 0.01, "the memory votes"
        assert similarity.min() < 1 or bundle.description.backbone == "siglip"


def test_int8_leaves_the_memory_and_the_classifier_as_they_are(made: tuple, tmp_path: Path) -> None:
    _, graph, _ = made
    for calibration in (IMAGES[:16], None):
        small, arithmetic = quantize(graph, calibration, PREPROCESS, tmp_path)
        check_graph(small)
        assert ("dynamic" in arithmetic) == (calibration is None)
        int8 = [set(value.dims) for value in small.graph.initializer if value.data_type == onnx.TensorProto.INT8]
        products = [sizes for sizes in int8 if WIDTH in sizes]
        assert products and not any(sizes & {len(IMAGES), CLASSES, len(IMAGES) // 4} for sizes in int8)
        found, exact = (loaded(each, tmp_path)(pixels(8)) for each in (small, graph))
        np.testing.assert_allclose(found.similarity, exact.similarity, atol=0.3)


VISION = {"image_size": 32, "patch_size": 8, "width": 48, "layers": 3, "head_width": 16}
TOWERS = {  # changes of VISION, QuickGELU, whether queries, keys and values have a projection each
    "plain": ({}, False, True),
    "QuickGELU": ({}, True, True),
    "layer scale": ({"ls_init_value": 0.3}, False, True),
    "no first LayerNorm": ({"no_ln_pre": True}, False, True),
    "one block": ({"layers": 1}, False, True),
    "a block of open_clip's own attention": ({"qk_norm": True, "block_type": "custom"}, False, False),
}


@pytest.mark.parametrize("kind", TOWERS)
def test_the_same_probabilities_and_features(kind):
    changes, quick_gelu, split = TOWERS[kind]
    torch.manual_seed(0)
    visual = build_visual({"embed_dim": 24, "vision_cfg": {**VISION, **changes}, "quick_gelu": quick_gelu})
    for parameter in visual.parameters():  # no weight of one and no bias of zero hides a mistake
        parameter.data += 0.1 * torch.randn_like(parameter)
    model = MaskedViT(visual, F.normalize(torch.randn(24, 7), dim=0), logit_factor=10.0).eval()
    images = torch.randn(5, 3, 32, 32)
    description = Description({}, "", "", list("abcdefg"), [], Preprocess(size=32).to_dict(), 10.0)
    served = InferenceModel(Bundle(model, description), uint8=False, embeddings=True).eval()
    with torch.no_grad():
        probability, embedding = served(images)
        torch.testing.assert_close(probability, model(images).softmax(-1), atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(embedding, F.normalize(visual(images), dim=-1), atol=1e-6, rtol=1e-5)
        served.embeddings = False
        torch.testing.assert_close(served(images)[0], probability)
    assert isinstance(served.tower.blocks[0].attn, SplitAttention) == split
