"""Weights of a model: a checkpoint file for a name of open_clip's, and folders that are no model."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from must.model.backbone import load_backbone
from must.model.bundle import make_zero_shot_bundle, save_bundle
from must.model.classifier import load_text_classifier
from tests.model.tiny import make_classifier, model_config, model_folder, named_model
from tests.training.lives import same


@pytest.fixture
def ours(tmp_path):
    return Path(model_folder("clip", tmp_path / "ours"))


@pytest.fixture
def named(ours, monkeypatch):
    """The tiny model by a name of open_clip's."""
    return named_model(model_config("clip"), ours.parent, monkeypatch)


def test_what_is_no_folder_of_a_model_is_one_line(ours, tmp_path):
    with pytest.raises(ValueError, match=r"^--model \S+: is a file; give its folder, .* --pretrained FILE$"):
        load_backbone(str(ours / "open_clip_model.safetensors"))
    made = make_zero_shot_bundle(make_classifier(tmp_path, str(ours)))
    save_bundle(str(tmp_path / "bundle"), made.model, made.description)
    with pytest.raises(ValueError, match=f"is a part of a model; give its folder, {tmp_path}/bundle$"):
        load_text_classifier(str(tmp_path / "bundle" / "model.safetensors"))
    with pytest.raises(ValueError, match=r"is a bundle, .* `must export --to open_clip` makes a model of it$"):
        load_backbone(str(tmp_path / "bundle"))
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"theirs: no open_clip_config.json .*transformers is converted once \(docs/m"):
        load_backbone(str(tmp_path / "theirs"))


def prefixed(state: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {prefix + name: value for name, value in state.items()}


def test_a_checkpoint_of_another_model_is_one_short_line(ours, named, tmp_path):
    state = load_file(ours / "open_clip_model.safetensors")
    wider = {name: torch.ones(5, *value.shape[1:]) if "ln_" in name else value for name, value in state.items()}
    for weights, message in (
        (wider, "size mismatch for visual.ln_pre.weight: "),
        ({"fc.weight": torch.ones(3)}, "Missing key"),
    ):
        torch.save(weights, tmp_path / "other.pt")
        with pytest.raises(ValueError, match=f"other.pt: cannot be loaded: .*{message}") as error:
            load_backbone(named, str(tmp_path / "other.pt"), with_tokenizer=False)
        assert "\n" not in str(error.value) and len(str(error.value)) < 400 + len(str(tmp_path))
    torch.jit.script(torch.nn.Linear(2, 2)).save(str(tmp_path / "ViT-B-16.pt"))  # OpenAI's own file is a program
    with pytest.raises(ValueError, match=r"ViT-B-16.pt: is a TorchScript program, .* --pretrained openai"):
        load_backbone(named, str(tmp_path / "ViT-B-16.pt"), with_tokenizer=False)


BLOCK = {
    "attn.in_proj_weight", "attn.in_proj_bias", "attn.out_proj.weight", "attn.out_proj.bias", "ln_1.weight",
    "ln_1.bias", "mlp.c_fc.weight", "mlp.c_fc.bias", "mlp.c_proj.weight", "mlp.c_proj.bias", "ln_2.weight", "ln_2.bias",
}  # fmt: skip
OPENAI = {
    "positional_embedding", "text_projection", "logit_scale", "token_embedding.weight", "ln_final.weight",
    "ln_final.bias", "visual.class_embedding", "visual.positional_embedding", "visual.proj", "visual.conv1.weight",
    "visual.ln_pre.weight", "visual.ln_pre.bias", "visual.ln_post.weight", "visual.ln_post.bias",
}  # fmt: skip


def test_the_names_are_openais_and_laions_training_checkpoints_give_them_too(ours, named, tmp_path):
    """Half precision, as OpenAI's file has it."""
    state = {name: value.half() for name, value in load_file(ours / "open_clip_model.safetensors").items()}
    blocks = [f"visual.transformer.resblocks.{n}." for n in (0, 1)] + ["transformer.resblocks.0."]
    assert state.keys() == OPENAI | {prefix + name for prefix in blocks for name in BLOCK}
    for number, content in enumerate((state, {"epoch": 32, "name": "run", "state_dict": prefixed(state, "module.")})):
        torch.save(content, tmp_path / f"{number}.pt")
        found = load_backbone(named, str(tmp_path / f"{number}.pt"), with_tokenizer=False).clip.state_dict()
        assert same(found, {name: value.float() for name, value in state.items()})
