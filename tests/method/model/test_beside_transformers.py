"""CLIPs that transformers saved: read here, they give transformers' own logits."""

import os
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from timm.models.vision_transformer import VisionTransformer

from must.api.demo import find_assets
from must.data.augment import normalize
from must.data.image.preprocess import EvalView
from must.method.model import transformers_folder
from must.method.model.backbone import build_visual, load_backbone
from tests.method.model.tiny import SIZE, TEXTS, make_classifier, register, write_tokenizer

needs_transformers = pytest.mark.skipif(
    find_spec("transformers") is None and not os.environ.get("REQUIRE_TRANSFORMERS"),
    reason="transformers is not installed; `make test-transformers` runs this",
)


register("vit_tiny_patch8_siglip_32", VisionTransformer, class_token=False, global_pool="map")


@pytest.fixture(autouse=True)
def tiny_siglip(monkeypatch):
    monkeypatch.setitem(transformers_folder.SIGLIPS, (32, 2, 2, 128), "tiny")


SMALL = {"hidden_size": 32, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
KINDS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "quick gelu": ("clip", {}, {}),
    "gelu": ("clip", {"hidden_act": "gelu"}, {"hidden_act": "gelu"}),
    "gelu of tanh, eps": ("clip", {"hidden_act": "gelu_new", "layer_norm_eps": 1e-6}, {"hidden_act": "gelu"}),
    "odd mlp": ("clip", {"intermediate_size": 101}, {"intermediate_size": 67}),
    "pooled by the highest": ("clip", {}, {"eos_token_id": 2}),
    "pooled by the end": ("clip", {}, {"eos_token_id": 575, "vocab_size": 600}),
    "siglip": ("siglip", {}, {}),
    "siglip, exact gelu": ("siglip", {"hidden_act": "gelu"}, {"hidden_act": "gelu"}),
    "siglip, a margin": ("siglip", {"image_size": 37}, {"hidden_act": "gelu"}),
}


def saved_by_transformers(kind: str, image: dict[str, Any], text: dict[str, Any], folder: Path, **more: Any) -> Any:
    """transformers' own model with random weights, its tokenizer and its preprocessing, as it saves them."""
    import transformers

    torch.manual_seed(0)
    if kind == "clip":
        config = transformers.CLIPConfig(text_config=text, vision_config=image, **more)
        model: Any = transformers.CLIPModel(config)
        side = image["image_size"]
        processor = transformers.CLIPImageProcessor(size={"shortest_edge": side}, crop_size=side)
    else:
        model = transformers.SiglipModel(transformers.SiglipConfig(text_config=text, vision_config=image))
        side = image["image_size"] // image["patch_size"] * image["patch_size"]
        processor = transformers.SiglipImageProcessor(size={"height": side, "width": side})
    with torch.no_grad():  # they start with zero biases, and one logit for all
        for name, parameter in model.named_parameters():
            if "logit" not in name:
                parameter.add_(0.02 * torch.randn_like(parameter))
        model.logit_scale.fill_(4.0)
    model.save_pretrained(folder, max_shard_size="800MB")
    processor.save_pretrained(folder)
    return model.eval()


def tokenizer_beside(kind: str, folder: Path, scratch: Path) -> None:
    import transformers

    scratch.mkdir()
    if kind == "clip":
        words = open_clip.SimpleTokenizer(str(find_assets() / "bpe.txt.gz"), context_length=24)
        write_tokenizer(words, scratch)
        transformers.CLIPTokenizer.from_pretrained(scratch).save_pretrained(folder)
        return
    import sentencepiece

    (scratch / "text.txt").write_text("\n".join([*TEXTS, *open_clip.IMAGENET_CLASSNAMES]))
    sentencepiece.SentencePieceTrainer.train(
        input=str(scratch / "text.txt"), model_prefix=str(scratch / "spiece"), vocab_size=500, pad_id=0, eos_id=1,
        unk_id=2, bos_id=-1, minloglevel=2,
    )  # fmt: skip
    transformers.SiglipTokenizer(str(scratch / "spiece.model"), model_max_length=24).save_pretrained(folder)


def logits_of_transformers(model: Any, folder: Path) -> torch.Tensor:
    import transformers

    words = transformers.AutoTokenizer.from_pretrained(folder)
    length = model.config.text_config.max_position_embeddings
    tokens = words(TEXTS, padding="max_length", max_length=length, return_tensors="pt")
    prepare = transformers.AutoImageProcessor.from_pretrained(folder, backend="pil")
    pixels = prepare(picture(), return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        return model(input_ids=tokens["input_ids"], pixel_values=at(pixels, model)).logits_per_image


def at(pixels: torch.Tensor, model: Any) -> torch.Tensor:
    """The margin that no patch covers is there, of anything."""
    more = model.config.vision_config.image_size - pixels.shape[-1]
    return F.pad(pixels, (0, more, 0, more), value=3.0) if more > 0 else pixels


def logits_of_ours(folder: Path) -> torch.Tensor:
    found = load_backbone(str(folder))
    pixels = normalize(torch.tensor(EvalView(found.preprocess)(picture())[None]), found.preprocess)
    with torch.no_grad():
        return found.clip.get_logits(pixels, found.tokenizer(TEXTS))[0]


def picture() -> Image.Image:
    """As many pixels are cut off on both sides: torchvision rounds half a pixel up, transformers down."""
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 48, 3), dtype=np.uint8))


@needs_transformers
@pytest.mark.parametrize("kind, image, text", KINDS.values(), ids=KINDS)
def test_the_logits_are_transformers_own(kind, image, text, tmp_path, below):
    folder = tmp_path / "saved"
    image = {**SMALL, "image_size": SIZE, "patch_size": 8, **image}
    end = {"bos_token_id": 574, "eos_token_id": 575} if kind == "clip" else {}
    text = {**SMALL, "vocab_size": 576, "max_position_embeddings": 24, **end, **text}
    model = saved_by_transformers(kind, image, text, folder, projection_dim=24)
    tokenizer_beside(kind, folder, tmp_path / "scratch")
    expected, found = logits_of_transformers(model, folder), logits_of_ours(folder)
    below(1e-4, "largest difference of a logit", (found - expected).abs().max().item())
    assert expected.std() > 0.01
    kept = make_classifier(folder.parent, str(folder))
    shutil.rmtree(folder)
    torch.testing.assert_close(logits_of_ours(Path(kept.model_folder)), found, atol=1e-5, rtol=0)
    again = load_backbone(kept.model_folder)
    visual = build_visual(again.architecture).eval()
    visual.load_state_dict(again.clip.visual.state_dict())
    with torch.no_grad():
        pixels = torch.randn(2, 3, SIZE, SIZE)
        torch.testing.assert_close(visual(pixels), again.clip.encode_image(pixels), atol=1e-6, rtol=0)


def sizes(shape: tuple[int, int, int, int], **more: Any) -> dict[str, Any]:
    names = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    return dict(zip(names, shape, strict=True)) | more


def seen(shape: tuple[int, int, int, int], pixels: int, patch: int) -> dict[str, Any]:
    return sizes(shape, image_size=pixels, patch_size=patch)


BASE, LARGE, SO400M, HUGE = (768, 12, 12, 3072), (1024, 24, 16, 4096), (1152, 27, 16, 4304), (1280, 32, 16, 5120)
OPENAI_TEXT, LARGE_TEXT = sizes((512, 12, 8, 2048)), sizes((768, 12, 12, 3072))
LAION = {"hidden_act": "gelu"}
REAL: dict[str, tuple[str, dict[str, Any], dict[str, Any], int]] = {
    "ViT-B/32": ("clip", seen(BASE, 224, 32), OPENAI_TEXT, 512),
    "ViT-B/16": ("clip", seen(BASE, 224, 16), OPENAI_TEXT, 512),
    "ViT-L/14": ("clip", seen(LARGE, 224, 14), LARGE_TEXT, 768),
    "ViT-L/14, 336 pixels": ("clip", seen(LARGE, 336, 14), LARGE_TEXT, 768),
    "ViT-H/14": ("clip", seen(HUGE, 224, 14) | LAION, sizes(LARGE) | LAION, 1024),
    "SigLIP base/16": ("siglip", seen(BASE, 224, 16), sizes(BASE, vocab_size=32000), 768),
    "SigLIP 2 base/32": ("siglip", seen(BASE, 256, 32), sizes(BASE, vocab_size=256000), 768),
    "SigLIP large/16": ("siglip", seen(LARGE, 384, 16), sizes(LARGE, vocab_size=32000), 1024),
    "SigLIP so400m/14": ("siglip", seen(SO400M, 384, 14), sizes(SO400M, vocab_size=32000), 1152),
    "SigLIP 2 so400m/16": ("siglip", seen(SO400M, 256, 16), sizes(SO400M, vocab_size=256000), 1152),
}


@needs_transformers
@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", REAL if os.environ.get("REQUIRE_FULL_SIZE") else ["ViT-B/32", "SigLIP base/16"])
def test_the_logits_are_transformers_own_at_full_size(name, tmp_path, record_property, below):
    kind, image, text, projection = REAL[name]
    folder = tmp_path / "saved"
    model = saved_by_transformers(kind, image, text, folder, projection_dim=projection)
    tokenizer_beside(kind, folder, tmp_path / "scratch")
    if kind == "clip":
        for path in folder.glob("token*"):
            path.unlink()
        write_tokenizer(open_clip.SimpleTokenizer(), folder)
    expected = logits_of_transformers(model, folder)
    del model
    found = logits_of_ours(folder)
    record_property("logits", str(expected.tolist()))
    below(1e-4, "largest difference of a logit", (found - expected).abs().max().item())
    assert expected.std() > 0.01
