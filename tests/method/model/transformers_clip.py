"""The tiny CLIP in transformers' format, written without transformers."""

import json
from pathlib import Path

import open_clip
import torch
from safetensors.torch import load_file, save_file

from must.api.demo import asset_folder
from tests.method.model.tiny import COMMON

SIZE = COMMON["img_size"]
TEXTS = ["a photo of a zero.", "a two", "Three  birds"]


def blocks(state: dict[str, torch.Tensor], ours: str, theirs: str) -> dict[str, torch.Tensor]:
    """The names are written here, and not asked of the code that is tested."""
    found = {}
    for number in range(sum(name.startswith(ours) and name.endswith("ln_1.bias") for name in state)):
        one, other = f"{ours}.{number}", f"{theirs}.encoder.layers.{number}"
        for kind in ("weight", "bias"):
            q, k, v = state[f"{one}.attn.in_proj_{kind}"].chunk(3)
            found |= {f"{other}.self_attn.{x}_proj.{kind}": y.clone() for x, y in (("q", q), ("k", k), ("v", v))}
            found[f"{other}.self_attn.out_proj.{kind}"] = state[f"{one}.attn.out_proj.{kind}"]
            found[f"{other}.layer_norm1.{kind}"] = state[f"{one}.ln_1.{kind}"]
            found[f"{other}.layer_norm2.{kind}"] = state[f"{one}.ln_2.{kind}"]
            found[f"{other}.mlp.fc1.{kind}"] = state[f"{one}.mlp.c_fc.{kind}"]
            found[f"{other}.mlp.fc2.{kind}"] = state[f"{one}.mlp.c_proj.{kind}"]
    return found


def write_tokenizer(tokenizer: open_clip.SimpleTokenizer, folder: Path) -> None:
    """vocab.json and merges.txt as transformers writes them."""
    renamed = {tokenizer.sot_token_id: "<|startoftext|>", tokenizer.eot_token_id: "<|endoftext|>"}
    vocabulary = {renamed.get(number, word): number for word, number in tokenizer.encoder.items()}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    merges = [" ".join(pair) for pair in tokenizer.bpe_ranks if len(pair) == 2]
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]), encoding="utf-8")


def by_hand(folder: Path, target: Path) -> Path:
    """The tiny CLIP of an open_clip folder as transformers would have saved it."""
    target.mkdir()
    state = load_file(folder / "open_clip_model.safetensors")
    image, text = "vision_model", "text_model"
    theirs = {
        "logit_scale": state["logit_scale"],
        "visual_projection.weight": state["visual.proj"].T.contiguous(),
        "text_projection.weight": state["text_projection"].T.contiguous(),
        f"{image}.embeddings.class_embedding": state["visual.class_embedding"],
        f"{image}.embeddings.patch_embedding.weight": state["visual.conv1.weight"],
        f"{image}.embeddings.position_embedding.weight": state["visual.positional_embedding"],
        f"{image}.embeddings.position_ids": torch.arange(17)[None],
        f"{text}.embeddings.token_embedding.weight": state["token_embedding.weight"],
        f"{text}.embeddings.position_embedding.weight": state["positional_embedding"],
        **blocks(state, "visual.transformer.resblocks", image),
        **blocks(state, "transformer.resblocks", text),
    }
    norms = {"visual.ln_pre": f"{image}.pre_layrnorm", "visual.ln_post": f"{image}.post_layernorm"}
    for ours, other in {**norms, "ln_final": f"{text}.final_layer_norm"}.items():
        theirs |= {f"{other}.{kind}": state[f"{ours}.{kind}"] for kind in ("weight", "bias")}
    save_file(theirs, target / "model.safetensors", {"format": "pt"})
    shape = {"hidden_size": 32, "num_attention_heads": 2}
    config = {
        "architectures": ["CLIPModel"],
        "model_type": "clip",
        "projection_dim": 24,
        "text_config": {
            **shape, "intermediate_size": 128, "num_hidden_layers": 1, "vocab_size": 576,
            "max_position_embeddings": 24, "eos_token_id": 2,
        },
        "vision_config": {"image_size": 224, "num_hidden_layers": 2},
        "vision_config_dict": {**shape, "intermediate_size": 128, "image_size": SIZE, "patch_size": 8},
    }  # fmt: skip
    (target / "config.json").write_text(json.dumps(config))
    write_tokenizer(open_clip.SimpleTokenizer(str(asset_folder() / "bpe.txt.gz"), context_length=24), target)
    prepared = {"size": {"shortest_edge": SIZE}, "resample": 2, "image_mean": [0.5] * 3, "image_std": [0.25] * 3}
    (target / "preprocessor_config.json").write_text(json.dumps(prepared))
    return target
