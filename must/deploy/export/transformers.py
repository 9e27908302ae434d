"""`must export --to transformers`: a CLIPModel or SiglipModel with its tokenizer and image processor.

The files are written without transformers, whose internal names change with its versions; afterwards transformers loads
them and its features are compared.

CLIPForImageClassification cannot represent this model: it classifies the mean of the patches before the last LayerNorm,
without CLIP's projection and without normalising the feature. No weights of its linear head give this model's logits.
"""

import json
import math
from pathlib import Path
from typing import Any

from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from must.base.errors import UserError
from must.base.parameters import require
from must.config import ExportConfig
from must.data.image.preprocess import FILTERS, Preprocess
from must.deploy.export.deployed import activation, features_of, is_standard
from must.deploy.export.model_card import usage
from must.deploy.export.open_clip import whole_model
from must.method.model.bundle import Bundle, preprocess_of
from must.method.model.folder import save_weights
from must.method.model.towers.clip_vit import ClipTower
from must.method.model.towers.timm_vit import TimmTower
from must.method.model.transformers_folder import BEGIN, END_OF_TEXT
from must.method.model.weights import to_transformers

USES = {  # code that computes a picture's unit feature
    "CLIPModel": (
        'pooled = model.vision_model(**processor(picture, return_tensors="pt")).pooler_output\n'
        "feature = torch.nn.functional.normalize(model.visual_projection(pooled), dim=-1)"
    ),
    "SiglipModel": (
        'pooled = model.vision_model(**processor(picture, return_tensors="pt")).pooler_output\n'
        "feature = torch.nn.functional.normalize(pooled, dim=-1)"
    ),
}
MORE = """

The text tower is the one that the model came with. There is no image classification model of transformers: those
classify the mean of the patches, without the head of this one, and cannot give these answers."""
KNOWN_PREFIXES = ("vision_model.", "text_model.", "visual_projection.", "text_projection.", "logit_")
ACTIVATIONS = {"gelu_tanh": "gelu_pytorch_tanh"}  # timm's name: transformers'


def write(config: ExportConfig, bundle: Bundle, folder: Path) -> None:
    """Raises ValueError: a model that neither CLIPModel nor SiglipModel can represent."""
    backbone = whole_model(config.classifier, config.model, bundle)
    clip: Any = backbone.clip
    model = clip, backbone.tokenizer, bundle.model.tower
    fits = is_openai(*model) or is_siglip(*model)
    weights = to_transformers(clip) if fits else {}
    require(
        fits and all(name.startswith(KNOWN_PREFIXES) for name in weights),
        "--to transformers: neither CLIPModel nor SiglipModel can hold this model; --to open_clip holds every model",
    )
    weights = {name: value.detach().float().contiguous().clone() for name, value in weights.items()}
    save_weights(weights, folder / "model.safetensors", {"format": "pt"})
    write_tokenizer(backbone.tokenizer, folder)
    write_preprocessing(preprocess_of(bundle.description), folder)
    write_json(folder / "config.json", configuration(clip, backbone.tokenizer, bundle.description.logit_factor))


def is_siglip(clip: Any, tokenizer: Any, tower: Any) -> bool:
    """Whether it is timm's tower without a class token, with attention pooling, and without a head, and SigLIP's text
    tower and tokenizer."""
    from open_clip import SimpleTokenizer

    if type(tower) is not TimmTower or type(tower.visual.trunk) is not VisionTransformer:
        return False
    trunk, head = tower.visual.trunk, tower.visual.head
    text: Any = getattr(clip, "text", None)
    return (
        trunk.global_pool == "map"
        and (trunk.num_prefix_tokens, len(head), trunk.num_classes) == (0, 0, 0)
        and getattr(text, "pool_type", "") == "last"
        and text.attn_mask is None
        and isinstance(text.text_projection, nn.Linear)
        and not isinstance(tokenizer, SimpleTokenizer)
    )


def is_openai(clip: Any, tokenizer: Any, tower: Any) -> bool:
    """Whether it is a Vision Transformer read by its class token, with OpenAI's text tower and tokenizer."""
    from open_clip import CLIP, SimpleTokenizer

    if type(clip) is not CLIP or type(tokenizer) is not SimpleTokenizer or type(tower) is not ClipTower:
        return False
    visual = clip.visual
    return (
        all(map(is_standard, tower.blocks))
        and not isinstance(visual.ln_pre, nn.Identity)
        and visual.conv1.bias is None
        and clip.text_pool_type in ("argmax", "eos")
        and clip.attn_mask is not None
        and isinstance(clip.text_projection, nn.Parameter)
        and is_uniform(tower.blocks, [visual.ln_pre, visual.ln_post])
        and is_uniform(clip.transformer.resblocks, [clip.ln_final])
    )


def is_uniform(blocks: Any, norms: list[Any]) -> bool:
    """Whether the blocks have no layer scale, a known activation, and LayerNorms with one epsilon, also in `norms`."""
    return (
        all(isinstance(block.ls_1, nn.Identity) and isinstance(block.ls_2, nn.Identity) for block in blocks)
        and len({norm.eps for norm in [*norms, blocks[0].ln_1, blocks[0].ln_2]}) == 1
        and bool(activation(blocks[0]))
    )


def configuration(clip: Any, tokenizer: Any, scale: float) -> dict[str, Any]:
    """config.json; `scale`: the factor of the cosines."""
    visual, siglip = clip.visual, hasattr(clip, "text")
    text, kind = (clip.text, "siglip") if siglip else (clip, "clip")
    blocks = visual.trunk.blocks if siglip else visual.transformer.resblocks
    patch = visual.trunk.patch_embed.patch_size if siglip else visual.patch_size
    embed = visual.trunk.num_features if siglip else visual.proj.shape[1]
    begin, end = (None, None) if siglip else (tokenizer.sot_token_id, tokenizer.eot_token_id)
    projection = {"projection_size": embed} if siglip else {"projection_dim": embed}
    return {
        "architectures": ["SiglipModel" if siglip else "CLIPModel"],
        "model_type": kind,
        **({} if siglip else {"projection_dim": embed, "logit_scale_init_value": math.log(scale)}),
        "torch_dtype": "float32",
        "vision_config": {
            "model_type": f"{kind}_vision_model",
            "image_size": visual.image_size[0],
            "patch_size": patch[0],
            **({} if siglip else projection),
            **shape(blocks),
        },
        "text_config": {
            "model_type": f"{kind}_text_model",
            "vocab_size": text.token_embedding.weight.shape[0],
            "max_position_embeddings": text.positional_embedding.shape[0],
            "bos_token_id": begin,
            "eos_token_id": end,
            "pad_token_id": end,
            **projection,
            **shape(text.transformer.resblocks),
        },
    }


def shape(blocks: Any) -> dict[str, Any]:
    """The sizes in config.json, of blocks of open_clip or timm."""
    block = blocks[0]
    norm, inner = (block.ln_1, block.mlp.c_fc) if hasattr(block, "ln_1") else (block.norm1, block.mlp.fc1)
    act = activation(block)
    return {
        "hidden_size": norm.weight.shape[0],
        "intermediate_size": inner.out_features,
        "num_hidden_layers": len(blocks),
        "num_attention_heads": block.attn.num_heads,
        "hidden_act": ACTIVATIONS.get(act, act),
        "layer_norm_eps": norm.eps,
    }


def features(folder: Path, images: Tensor) -> Tensor:
    """The features [N, D] that transformers computes. Raises ValueError: transformers is not installed."""
    try:
        import transformers
    except ImportError:
        raise UserError(
            "--to transformers: the package transformers, which the folder is tried with, is not installed here; "
            "install it with: pip install 'must-clip[siglip]'"
        ) from None
    name = architecture_of(folder)
    load: Any = getattr(transformers, name).from_pretrained
    model, info = load(folder, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"], info
    project = model.eval().visual_projection if name == "CLIPModel" else nn.Identity()
    return features_of(lambda part: project(model.vision_model(pixel_values=part).pooler_output), images)


def architecture_of(folder: Path) -> str:
    return str(json.loads((folder / "config.json").read_text())["architectures"][0])


def use(folder: Path) -> str:
    name = architecture_of(folder)
    load = (
        f'model = transformers.{name}.from_pretrained("FOLDER").eval()  # on a hub: "TEAM/NAME"\n'
        'processor = transformers.CLIPImageProcessor.from_pretrained("FOLDER")'
    )
    return usage("safetensors, torch, transformers", load, USES[name]) + MORE


def write_tokenizer(tokenizer: Any, folder: Path) -> None:
    """vocab.json, merges.txt and their settings, of open_clip's SimpleTokenizer; others have `save_pretrained`."""
    if hasattr(tokenizer, "save_pretrained"):
        tokenizer.save_pretrained(folder)
        return
    renamed = {tokenizer.sot_token_id: BEGIN, tokenizer.eot_token_id: END_OF_TEXT}
    vocabulary = {renamed.get(number, word): number for word, number in tokenizer.encoder.items()}
    write_json(folder / "vocab.json", vocabulary)
    merges = [" ".join(pair) for pair in tokenizer.bpe_ranks if len(pair) == 2]
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]), encoding="utf-8")
    special = {"bos_token": BEGIN, "eos_token": END_OF_TEXT, "unk_token": END_OF_TEXT, "pad_token": END_OF_TEXT}
    write_json(folder / "special_tokens_map.json", special)
    settings = {"model_max_length": tokenizer.context_length, "do_lower_case": True, "tokenizer_class": "CLIPTokenizer"}
    write_json(folder / "tokenizer_config.json", special | settings)


def write_preprocessing(preprocess: Preprocess, folder: Path) -> None:
    """preprocessor_config.json."""
    square = {"height": preprocess.size, "width": preprocess.size}
    squash = preprocess.resize_mode == "squash"
    values = {
        "image_processor_type": "CLIPImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": square if squash else {"shortest_edge": preprocess.size},
        "resample": int(FILTERS[preprocess.interpolation]),
        "do_center_crop": not squash,
        "crop_size": square,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(preprocess.mean),
        "image_std": list(preprocess.std),
    }
    write_json(folder / "preprocessor_config.json", values)


def write_json(path: Path, values: Any) -> None:
    path.write_text(json.dumps(values, indent=1), encoding="utf-8")
