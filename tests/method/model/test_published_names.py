"""Checkpoints as their makers named them, at a tiny size: the names are written here, and not asked of open_clip."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch

from must.method.model.backbone import load_backbone
from tests.method.model.tiny import model_config, named_model

BLOCK = {
    "attn.in_proj_weight", "attn.in_proj_bias", "attn.out_proj.weight", "attn.out_proj.bias", "ln_1.weight",
    "ln_1.bias", "mlp.c_fc.weight", "mlp.c_fc.bias", "mlp.c_proj.weight", "mlp.c_proj.bias", "ln_2.weight", "ln_2.bias",
}  # fmt: skip
OPENAI = {
    "positional_embedding", "text_projection", "logit_scale", "token_embedding.weight", "ln_final.weight",
    "ln_final.bias", "visual.class_embedding", "visual.positional_embedding", "visual.proj", "visual.conv1.weight",
    "visual.ln_pre.weight", "visual.ln_pre.bias", "visual.ln_post.weight", "visual.ln_post.bias",
}  # fmt: skip


def random_state(name: str) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    clip = open_clip.create_model(name)
    return {key: torch.randn_like(value) for key, value in clip.state_dict().items()}


def assert_loads(name: str, file: Path, expected: dict[str, torch.Tensor]) -> None:
    found = load_backbone(name, str(file), with_tokenizer=False).clip.state_dict()
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value.float(), msg=key)


def test_openais_names(tmp_path, monkeypatch):
    """Half precision, as their file has it; and the names that LAION's training checkpoints give the same tensors."""
    name = named_model(model_config("clip"), tmp_path, monkeypatch)
    blocks = [f"visual.transformer.resblocks.{n}." for n in (0, 1)] + ["transformer.resblocks.0."]
    state = {key: value.half() for key, value in random_state(name).items()}
    assert state.keys() == OPENAI | {prefix + one for prefix in blocks for one in BLOCK}
    torch.save(state, tmp_path / "openai.pt")
    assert_loads(name, tmp_path / "openai.pt", state)
    laion = {"epoch": 32, "name": "run", "state_dict": {f"module.{key}": value for key, value in state.items()}}
    torch.save(laion, tmp_path / "laion.pt")
    assert_loads(name, tmp_path / "laion.pt", state)


def test_openais_own_file_is_a_program_and_that_is_said(tmp_path, monkeypatch):
    name = named_model(model_config("clip"), tmp_path, monkeypatch)
    torch.jit.script(torch.nn.Linear(2, 2)).save(str(tmp_path / "ViT-B-16.pt"))
    with pytest.raises(ValueError, match=r"ViT-B-16.pt: is a TorchScript program, .* --pretrained openai"):
        load_backbone(name, str(tmp_path / "ViT-B-16.pt"), with_tokenizer=False)


def test_googles_names_of_siglip(tmp_path, monkeypatch):
    config = model_config("siglip")
    config["text_cfg"] |= {"no_causal_mask": True, "proj_bias": True, "pool_type": "last"}
    name = named_model(config, tmp_path, monkeypatch)
    state = random_state(name)
    saved = big_vision(state)
    np.savez(tmp_path / "siglip.npz", **saved)
    assert_loads(name, tmp_path / "siglip.npz", state)
    saved["params/img/norm/scale"] = saved.pop("params/img/Transformer/encoder_norm/scale")
    np.savez(tmp_path / "other.npz", **saved)
    with pytest.raises(ValueError, match=r"other.npz: cannot be loaded: .*params/img/Transformer/encoder_norm/scale"):
        load_backbone(name, str(tmp_path / "other.npz"), with_tokenizer=False)


def big_vision(state: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
    """As big_vision saves it: layers stacked, kernels [in, out], heads of their own axis."""
    values = {name: value.double().numpy().astype(np.float32) for name, value in state.items()}
    image, text, heads = "params/img/", "params/txt/", 2
    saved = {
        "params/t": values["logit_scale"].reshape(1), "params/b": values["logit_bias"].reshape(1),
        image + "embedding/kernel": values["visual.trunk.patch_embed.proj.weight"].transpose(2, 3, 1, 0),
        image + "embedding/bias": values["visual.trunk.patch_embed.proj.bias"],
        image + "pos_embedding": values["visual.trunk.pos_embed"],
        image + "MAPHead_0/probe": values["visual.trunk.attn_pool.latent"],
        text + "Embed_0/embedding": values["text.token_embedding.weight"],
        text + "pos_embedding": values["text.positional_embedding"][None],
        text + "head/kernel": values["text.text_projection.weight"].T,
        text + "head/bias": values["text.text_projection.bias"],
    }  # fmt: skip

    def norm(place: str, ours: str) -> dict[str, np.ndarray]:
        return {f"{place}/scale": values[f"{ours}.weight"], f"{place}/bias": values[f"{ours}.bias"]}

    def dense(place: str, ours: str) -> dict[str, np.ndarray]:
        return {f"{place}/kernel": values[f"{ours}.weight"].T, f"{place}/bias": values[f"{ours}.bias"]}

    def attention(place: str, weight: np.ndarray, bias: np.ndarray, out: str) -> dict[str, np.ndarray]:
        width = weight.shape[1]
        found: dict[str, np.ndarray] = {}
        for part, w, b in zip(("query", "key", "value"), np.split(weight, 3), np.split(bias, 3), strict=True):
            found[f"{place}/{part}/kernel"] = w.T.reshape(width, heads, -1)
            found[f"{place}/{part}/bias"] = b.reshape(heads, -1)
        found[f"{place}/out/kernel"] = values[f"{out}.weight"].T.reshape(heads, -1, width)
        return found | {f"{place}/out/bias": values[f"{out}.bias"]}

    def block(ours: str, theirs: tuple[str, str, str, str, str, str, str]) -> dict[str, np.ndarray]:
        first, second, weight, bias, out, up, down = (f"{ours}.{one}" for one in theirs)
        return {
            **norm("LayerNorm_0", first), **norm("LayerNorm_1", second), **dense("MlpBlock_0/Dense_0", up),
            **dense("MlpBlock_0/Dense_1", down),
            **attention("MultiHeadDotProductAttention_0", values[weight], values[bias], out),
        }  # fmt: skip

    timms = ("norm1", "norm2", "attn.qkv.weight", "attn.qkv.bias", "attn.proj", "mlp.fc1", "mlp.fc2")
    open_clips = ("ln_1", "ln_2", "attn.in_proj_weight", "attn.in_proj_bias", "attn.out_proj", "mlp.c_fc", "mlp.c_proj")
    towers = [
        (image + "Transformer/", [block(f"visual.trunk.blocks.{n}", timms) for n in (0, 1)], "visual.trunk.norm"),
        (text + "Encoder_0/", [block("text.transformer.resblocks.0", open_clips)], "text.ln_final"),
    ]
    for place, blocks, last in towers:
        saved |= {f"{place}encoderblock/{key}": np.stack([one[key] for one in blocks]) for key in blocks[0]}
        saved |= norm(place + "encoder_norm", last)
    pool, head = "visual.trunk.attn_pool", image + "MAPHead_0/"
    both = [np.concatenate([values[f"{pool}.q.{what}"], values[f"{pool}.kv.{what}"]]) for what in ("weight", "bias")]
    saved |= attention(head + "MultiHeadDotProductAttention_0", both[0], both[1], f"{pool}.proj")
    saved |= norm(head + "LayerNorm_0", f"{pool}.norm")
    for number in (0, 1):
        saved |= dense(f"{head}MlpBlock_0/Dense_{number}", f"{pool}.mlp.fc{number + 1}")
    return saved
