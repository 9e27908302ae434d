"""`--look-alikes`: an encoder that the classifier stage keeps, and that judges in every stage after it."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file

from must.api.demo import asset_folder
from must.api.stages import call
from must.data.augment.normalize import normalize
from must.deploy.export.model_card import licence
from must.method.model import encoder
from must.method.model.bundle import load_description, zero_shot_bundle
from must.method.model.classifier import load_text_classifier, read_header
from must.method.model.encoder import SIDE, check, load_kept
from tests.evaluate.digits import digits as make_digits

TINY = "test_vit"


@pytest.fixture(scope="module")
def digits():
    return make_digits()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder as timm writes them, of a tiny network with random weights that looks at 160 pixels."""
    place = tmp_path_factory.mktemp("encoders") / "tiny"
    torch.manual_seed(0)
    timm.models.save_for_hf(timm.create_model(TINY, num_classes=0), str(place), safe_serialization=True)
    return place


def made(digits, place, look_alikes):
    classes, output = str(Path(digits.shards).parent / "classes.yaml"), str(place / "c.safetensors")
    call(
        "classifier",
        classes=classes,
        model=str(asset_folder()),
        look_alikes=str(look_alikes),
        output=output,
        device="cpu",
    )
    return output


@pytest.fixture(scope="module")
def classifier(digits, folder, tmp_path_factory):
    return made(digits, tmp_path_factory.mktemp("made"), folder)


def test_it_is_kept_beside_the_classifier_and_sees_what_timm_sees(classifier, folder):
    kept = load_text_classifier(classifier).encoder
    assert kept == zero_shot_bundle(load_text_classifier(classifier)).encoder
    assert Path(kept.folder).parent == Path(classifier).parent / "models" and kept.licence == "apache-2.0"
    eye, theirs = load_kept(kept), timm.create_model(f"local-dir:{folder}", pretrained=True, num_classes=0).eval()
    pixels = torch.randint(0, 256, (5, 160, 160, 3), dtype=torch.uint8)
    with torch.inference_mode():
        expected = theirs(normalize(pixels, eye.preprocess))
    assert eye.preprocess.size == 160 and eye.preprocess.mean == pytest.approx(theirs.default_cfg["mean"])
    assert torch.allclose(eye(pixels), expected, atol=1e-5)
    assert eye(pixels[:, ::5, ::5]).shape == expected.shape, "a model's smaller pixels are made larger"


def test_every_check_uses_its_features_and_the_model_card_has_its_licence(digits, classifier, folder, tmp_path):
    shards = {"shards": digits.shards, "workers": 0, "device": "cpu"}
    stories = {}
    for name, file in (("tower", digits.classifier), ("encoder", classifier)):
        places = {"model": digits.adapted, "baseline": file, "output": str(tmp_path / name)}
        stories[name] = call("select", **shards, **places, alpha=1.0).to_dict()["check"]
    assert stories["tower"]["agreement_before"] != stories["encoder"]["agreement_before"]
    metrics = call("evaluate", **shards, **places | {"output": str(tmp_path / "report")}, split="train")
    assert metrics["label_free"]["compared"]["check"]["agreement_before"] == stories["encoder"]["agreement_before"]
    settings = {**shards, "classifier": classifier, "output": str(tmp_path / "model"), "epochs": 1, "batch_size": 50}
    call("train", **settings)
    story = load_description(str(tmp_path / "model"))
    assert story.provenance["encoder"].items() < read_header(classifier)["encoder"].items()
    assert "which is not part of the model; its licence is: apache-2.0" in licence(story)


def test_without_one_the_classifier_is_what_it_was(digits, tmp_path):
    assert read_header(digits.classifier).get("encoder") is None
    assert Path(made(digits, tmp_path, "tower")).read_bytes() == Path(made(digits, tmp_path, "auto")).read_bytes()


@pytest.mark.parametrize("damage", ["gone", "cut", "other"])
def test_what_was_kept_and_is_no_longer_so_is_one_line(digits, folder, tmp_path, damage):
    file = made(digits, tmp_path, folder)
    kept = load_text_classifier(file).encoder
    weights = Path(kept.folder) / "model.safetensors"
    if damage == "gone":
        shutil.rmtree(kept.folder)
    elif damage == "cut":
        weights.write_bytes(weights.read_bytes()[:-100])
    else:
        timm.models.save_for_hf(timm.create_model(TINY, num_classes=0), kept.folder, safe_serialization=True)
    message = "the encoder for look-alikes is not there" if damage == "gone" else r"of another model .*\(sha256\)"
    with pytest.raises(ValueError, match=message) as error:
        call("refine", shards=digits.shards, classifier=file, output=str(tmp_path / "refined"), workers=0, device="cpu")
    assert "\n" not in str(error.value)


def test_an_open_clip_model_is_one_too(digits, tmp_path):
    kept = load_text_classifier(made(digits, tmp_path, f"open_clip:{asset_folder()}")).encoder
    assert load_kept(kept)(torch.zeros(2, 32, 32, 3, dtype=torch.uint8)).ndim == 2


def test_wrong_names_and_damaged_files_are_one_line(digits, folder, tmp_path):
    torch.save(load_file(folder / "model.safetensors"), tmp_path / "w.pth")
    (tmp_path / "cut.pth").write_bytes((tmp_path / "w.pth").read_bytes()[:-5000])
    shutil.copytree(folder, tmp_path / "cut")
    (tmp_path / "cut" / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:-5000])
    (tmp_path / "empty").mkdir()
    for name, message in {
        "timm:vit_smal_patch14_dinov2": "did you mean timm:vit_small_patch14_dinov2.lvd142m",
        "timm:vit_small_patch14_dinov2.lvd": "knows no weights of that name; did you mean",
        "dinov2": "did you mean timm:vit_small_patch14_dinov2.lvd142m?",
        "open_clip:ViT-B-99": "did you mean",
        f"{tmp_path}/w.pth": "is a file; say of which model: timm:NAME=",
        f"timm:{TINY}={tmp_path}/none.pth": "no such file",
        f"{tmp_path}/empty": "has neither config.json",
    }.items():
        with pytest.raises(ValueError, match=message) as error:
            check(name)
        assert str(error.value).startswith(f"--look-alikes {name}: ") and "\n" not in str(error.value)
    for name, message in {
        f"timm:{TINY}={tmp_path}/cut.pth": "cannot be loaded",
        f"timm:test_vit2={tmp_path}/w.pth": "they lack a part of this one",
        f"timm:test_vit4={tmp_path}/w.pth": "cannot be loaded: Error.* in loading state_dict",
        f"{tmp_path}/cut": "cannot be loaded",
    }.items():
        with pytest.raises(ValueError, match=message) as error:
            made(digits, tmp_path / "made", name)
        assert str(error.value).startswith(f"--look-alikes {name}: ") and "\n" not in str(error.value)
    assert not (tmp_path / "made" / "c.safetensors").exists()
    file = made(digits, tmp_path / "made", f"timm:{TINY}={tmp_path}/w.pth")
    seen = [load_kept(load_text_classifier(one).encoder) for one in (file, made(digits, tmp_path / "too", folder))]
    pixels = torch.randint(0, 256, (2, 32, 32, 3), dtype=torch.uint8)
    assert np.array_equal(*(eye(pixels).numpy() for eye in seen)), "a checkpoint and a folder of the same weights"


DINOV2_BLOCK = ("norm1", "norm2", "attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")


def with_bias(*layers):
    return [f"{layer}.{one}" for layer in layers for one in ("weight", "bias")]


@pytest.mark.slow
def test_dinov2_small_from_its_checkpoint(digits, tmp_path, monkeypatch):
    """The real architecture at the real size, with random weights: 518 pixels as published, 224 as it looks here."""
    name = encoder.DEFAULT.removeprefix("timm:")
    torch.manual_seed(0)
    weights = timm.create_model(name, num_classes=0).state_dict()
    assert weights["pos_embed"].shape == (1, 1370, 384)
    assert weights.keys() == {"cls_token", "pos_embed", *with_bias("patch_embed.proj", "norm")} | {
        f"blocks.{n}.{one}" for n in range(12) for one in ("ls1.gamma", "ls2.gamma", *with_bias(*DINOV2_BLOCK))
    }  # Meta's names, with the next one
    torch.save(weights | {"mask_token": torch.zeros(1, 384)}, tmp_path / "dino.pth")
    kept = load_text_classifier(made(digits, tmp_path, f"{encoder.DEFAULT}={tmp_path}/dino.pth")).encoder
    eye = load_kept(kept)
    assert kept.licence == "apache-2.0" and eye.preprocess.size == SIDE and eye.preprocess.interpolation == "bicubic"
    found = eye(torch.randint(0, 256, (2, 32, 32, 3), dtype=torch.uint8))
    assert found.shape == (2, 384) and bool(found.isfinite().all()) and not torch.allclose(found[0], found[1])
