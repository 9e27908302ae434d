"""The network as it is served says what the network that was trained says, for every kind of tower that MUST takes."""

import pytest
import torch
import torch.nn.functional as F

from must.data.image.preprocess import Preprocess
from must.deploy.export.inference import InferenceModel
from must.method.model.backbone import build_visual
from must.method.model.bundle import Bundle
from must.method.model.description import Description
from must.method.model.masked_vit import MaskedViT

VISION = {"image_size": 32, "patch_size": 8, "width": 48, "layers": 3, "head_width": 16}
TOWERS = {  # changes of VISION, QuickGELU, whether only the class token is computed in the end
    "plain": ({}, False, True),
    "QuickGELU": ({}, True, True),
    "layer scale": ({"ls_init_value": 0.3}, False, True),
    "no first LayerNorm": ({"no_ln_pre": True}, False, True),
    "one block": ({"layers": 1}, False, True),
    "a block of open_clip's own attention": ({"qk_norm": True, "block_type": "custom"}, False, False),
    "mean of the patches": ({"pool_type": "avg", "final_ln_after_pool": True}, False, False),
}


@pytest.mark.parametrize("kind", TOWERS)
def test_the_same_probabilities_and_features(kind):
    changes, quick_gelu, class_token_only = TOWERS[kind]
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
        assert torch.equal(served(images)[0], probability)
    assert (served.blocks is not None) == class_token_only
