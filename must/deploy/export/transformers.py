"""`must export --to transformers`: a CLIPModel with its tokenizer and image processor, by the names of its own files.

The files are written here rather than by transformers, whose inner names change with its versions; that it reads them
as they were meant is compared afterwards.

There is no CLIPForImageClassification: it classifies the mean of the patches before the last LayerNorm, without CLIP's
projection and without making the feature unit. No weights of its linear head give this model's logits.
"""

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from torch import Tensor, nn

from must.base.errors import UserError
from must.config import ExportConfig
from must.data.image.preprocess import FILTERS, Preprocess
from must.deploy.export.check import features_of
from must.deploy.export.deployed import activation, is_standard
from must.deploy.export.hub_card import usage
from must.deploy.export.whole import whole_model
from must.method.model.bundle import Bundle, preprocess_of
from must.method.model.folder import save_weights
from must.method.model.towers.clip_vit import ClipTower

BLOCK = (
    ("ln_1.", "layer_norm1."),
    ("ln_2.", "layer_norm2."),
    ("attn.out_proj.", "self_attn.out_proj."),
    ("mlp.c_fc.", "mlp.fc1."),
    ("mlp.c_proj.", "mlp.fc2."),
)
USE = usage(
    "safetensors, torch, transformers",
    'model = transformers.CLIPModel.from_pretrained("FOLDER").eval()  # on a hub: "TEAM/NAME"\n'
    'processor = transformers.CLIPImageProcessor.from_pretrained("FOLDER")',
    'pooled = model.vision_model(**processor(picture, return_tensors="pt")).pooler_output\n'
    "feature = torch.nn.functional.normalize(model.visual_projection(pooled), dim=-1)",
)
MORE = """

`CLIPProcessor` loads the folder too; the text tower is the one that the model came with. There is no
`CLIPForImageClassification`: it classifies the mean of the patches, without CLIP's projection, and cannot give these
answers."""
BEGIN, END = "<|startoftext|>", "<|endoftext|>"  # open_clip calls them <start_of_text> and <end_of_text>


def write(config: ExportConfig, bundle: Bundle, folder: Path) -> None:
    """Raises ValueError: a model that CLIPModel cannot hold."""
    check_holds(bundle)
    backbone = whole_model(config.classifier, config.model, bundle)
    clip: Any = backbone.clip
    check_text(clip, backbone.tokenizer)
    weights = {name: value.detach().float().contiguous().clone() for name, value in names_of(clip).items()}
    save_weights(weights, folder / "model.safetensors", {"format": "pt"})
    write_tokenizer(backbone.tokenizer, folder)
    write_preprocessing(preprocess_of(bundle.description), folder)
    write_json(folder / "config.json", configuration(clip, backbone.tokenizer, bundle.description.logit_factor))


def check_holds(bundle: Bundle) -> None:
    tower = bundle.model.tower
    if type(tower) is not ClipTower or not all(map(is_standard, tower.blocks)):
        refuse("its image tower is another than OpenAI's, a Vision Transformer read by its class token")
    visual: Any = bundle.model.visual
    if isinstance(visual.ln_pre, nn.Identity) or visual.conv1.bias is not None:
        refuse("the image tower has no LayerNorm before its blocks, or a bias in its patch embedding")
    check_blocks(tower.blocks, [visual.ln_pre, visual.ln_post])


def check_text(clip: Any, tokenizer: Any) -> None:
    from open_clip import CLIP
    from open_clip.tokenizer import SimpleTokenizer

    if type(clip) is not CLIP or type(tokenizer) is not SimpleTokenizer:
        refuse("the text tower or its tokenizer is another than OpenAI's")
    if clip.text_pool_type != "argmax" or clip.attn_mask is None or not isinstance(clip.text_projection, nn.Parameter):
        refuse("the text tower sees words that follow, or has another head than OpenAI's")
    check_blocks(clip.transformer.resblocks, [clip.ln_final])


def check_blocks(blocks: Any, norms: list[Any]) -> None:
    first = blocks[0]
    if not all(isinstance(block.ls_1, nn.Identity) and isinstance(block.ls_2, nn.Identity) for block in blocks):
        refuse("it has layer scale (ls_1, ls_2)")
    if len({norm.eps for norm in [*norms, first.ln_1, first.ln_2]}) != 1 or not activation(first):
        refuse("its LayerNorms or its activation are others than OpenAI's")


def refuse(reason: str) -> NoReturn:
    raise UserError(
        f"--to transformers: its CLIPModel cannot hold this model: {reason}; --to open_clip holds every model"
    )


def names_of(clip: Any) -> dict[str, Tensor]:
    """The weights under the names that CLIPModel's files have."""
    visual = clip.visual
    width = visual.class_embedding.shape[0]
    weights: dict[str, Tensor] = {
        "logit_scale": clip.logit_scale.reshape(()),
        "visual_projection.weight": visual.proj.T,
        "text_projection.weight": clip.text_projection.T,
        "vision_model.embeddings.class_embedding": visual.class_embedding.reshape(width),
        "vision_model.embeddings.patch_embedding.weight": visual.conv1.weight,
        "vision_model.embeddings.position_embedding.weight": visual.positional_embedding,
        "text_model.embeddings.token_embedding.weight": clip.token_embedding.weight,
        "text_model.embeddings.position_embedding.weight": clip.positional_embedding,
    }
    norms = {
        "vision_model.pre_layrnorm": visual.ln_pre,  # their spelling
        "vision_model.post_layernorm": visual.ln_post,
        "text_model.final_layer_norm": clip.ln_final,
    }
    for name, norm in norms.items():
        weights |= {f"{name}.weight": norm.weight, f"{name}.bias": norm.bias}
    for tower, transformer in (("vision_model", visual.transformer), ("text_model", clip.transformer)):
        for number, block in enumerate(transformer.resblocks):
            for name, value in block_names(block).items():
                weights[f"{tower}.encoder.layers.{number}.{name}"] = value
    return weights


def block_names(block: Any) -> dict[str, Tensor]:
    weights = {}
    for name, value in block.state_dict().items():
        kind = name.removeprefix("attn.in_proj_")
        if kind != name:
            for part, piece in zip("qkv", value.chunk(3), strict=True):
                weights[f"self_attn.{part}_proj.{kind}"] = piece
            continue
        for ours, theirs in BLOCK:
            name = name.replace(ours, theirs)
        weights[name] = value
    return weights


def configuration(clip: Any, tokenizer: Any, scale: float) -> dict[str, Any]:
    """config.json; `scale` is the factor on the cosines."""
    visual = clip.visual
    embed = visual.proj.shape[1]
    return {
        "architectures": ["CLIPModel"],
        "model_type": "clip",
        "projection_dim": embed,
        "logit_scale_init_value": math.log(scale),
        "torch_dtype": "float32",
        "vision_config": {
            "model_type": "clip_vision_model",
            "image_size": visual.image_size[0],
            "patch_size": visual.patch_size[0],
            "projection_dim": embed,
            **shape(visual.transformer.resblocks),
        },
        "text_config": {
            "model_type": "clip_text_model",
            "vocab_size": clip.token_embedding.weight.shape[0],
            "max_position_embeddings": clip.positional_embedding.shape[0],
            "bos_token_id": tokenizer.sot_token_id,
            "eos_token_id": tokenizer.eot_token_id,
            "pad_token_id": tokenizer.eot_token_id,
            "projection_dim": embed,
            **shape(clip.transformer.resblocks),
        },
    }


def shape(blocks: Any) -> dict[str, Any]:
    block = blocks[0]
    width = block.ln_1.weight.shape[0]
    return {
        "hidden_size": width,
        "intermediate_size": block.mlp.c_fc.out_features,
        "num_hidden_layers": len(blocks),
        "num_attention_heads": block.attn.num_heads,
        "hidden_act": activation(block),
        "layer_norm_eps": block.ln_1.eps,
    }


def features(folder: Path, images: Tensor) -> Tensor:
    """transformers' own, [N, D]. Raises ValueError: transformers is not installed."""
    try:
        from transformers import CLIPModel
    except ImportError:
        raise UserError(
            "--to transformers: the package transformers, which the folder is tried with, is not installed here; "
            "install it with: pip install 'must-clip[siglip]'"
        ) from None
    load: Any = CLIPModel.from_pretrained
    with no_progress_bar():
        model, info = load(folder, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"], info
    model.eval()
    return features_of(
        lambda part: model.visual_projection(model.vision_model(pixel_values=part).pooler_output), images
    )


@contextmanager
def no_progress_bar() -> Iterator[None]:
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def use(bundle: Bundle, folder: Path) -> str:
    return USE + MORE


def write_tokenizer(tokenizer: Any, folder: Path) -> None:
    """vocab.json, merges.txt and their settings, of open_clip's SimpleTokenizer."""
    renamed = {tokenizer.sot_token_id: BEGIN, tokenizer.eot_token_id: END}
    vocabulary = {renamed.get(number, word): number for word, number in tokenizer.encoder.items()}
    write_json(folder / "vocab.json", vocabulary)
    merges = [" ".join(pair) for pair in tokenizer.bpe_ranks if len(pair) == 2]
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]), encoding="utf-8")
    special = {"bos_token": BEGIN, "eos_token": END, "unk_token": END, "pad_token": END}
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
