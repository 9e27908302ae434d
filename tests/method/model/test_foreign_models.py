"""Models from others: a bundle fetches nothing, whatever it says, and no model folder gets its own code run."""

import json
import shutil
import socket

import pytest

from must.api.demo import asset_folder
from must.method.model.backbone import load_backbone
from must.method.model.bundle import load_bundle
from must.method.model.description import Selection


@pytest.fixture
def asked(monkeypatch):
    """The hosts that anybody looks up; none is found."""
    hosts = []

    def look_up(host, *_, **__):
        hosts.append(host)
        raise socket.gaierror(-2, "this test has no network")

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    return hosts


def rewritten(original, file, tmp_path, change):
    """A copy of a folder, in one of whose JSON files `change` has changed the values."""
    folder = tmp_path / "copy"
    shutil.copytree(original, folder)
    values = json.loads((folder / file).read_text())
    change(values)
    (folder / file).write_text(json.dumps(values))
    return str(folder)


def changed(digits, tmp_path, change):
    """A bundle with another architecture."""
    return rewritten(digits.zero_shot, "model.json", tmp_path, lambda values: change(values["architecture"]))


def given_model(tmp_path, change):
    """A model folder with another configuration."""
    return rewritten(asset_folder(), "open_clip_config.json", tmp_path, change)


@pytest.mark.parametrize(
    "name",
    ["hf-hub:attacker/x", "hf_hub:attacker/x", "HF-HUB:attacker/x", "local-dir:/etc", "attacker/x", "", ["x"], 5],
)
def test_a_bundle_that_names_a_model_elsewhere_is_refused(digits, tmp_path, asked, name):
    folder = changed(digits, tmp_path, lambda architecture: architecture["vision_cfg"].update(timm_model_name=name))
    with pytest.raises(ValueError, match=r"model.json: its image tower is called .* none of timm's own models"):
        load_bundle(folder)
    assert asked == []


def test_a_tower_of_timm_is_built_without_its_weights(digits, tmp_path, asked):
    def change(architecture):
        architecture["vision_cfg"] = {"timm_model_name": "vit_tiny_patch16_224", "timm_model_pretrained": True}

    with pytest.raises(ValueError, match=r"model.safetensors: is damaged or of another model"):
        load_bundle(changed(digits, tmp_path, change))  # it was built: then the weights did not fit
    assert asked == []


def test_a_model_folder_may_not_bring_code(tmp_path, asked):
    own_code = {"hf_tokenizer_name": "x", "tokenizer_kwargs": {"trust_remote_code": True}}
    folder = given_model(tmp_path, lambda config: config["model_cfg"]["text_cfg"].update(own_code))
    with pytest.raises(ValueError, match="asks to run its own code"):
        load_backbone(folder)
    assert asked == []


def test_a_model_folder_with_an_odd_preprocessing_is_named(tmp_path):
    folder = given_model(tmp_path, lambda config: config["preprocess_cfg"].update(std=[0, 0, 0]))
    with pytest.raises(ValueError, match=f"--model {folder}: the model's preprocessing has a mean or deviation out of"):
        load_backbone(folder)


@pytest.mark.parametrize(
    "name, value, message",
    [
        ("architecture", {"embed_dim": 64, "vision_cfg": None}, "model.json: is damaged"),
        *(("logit_factor", value, "model.json: is damaged") for value in (float("nan"), -1, "x", 10**400)),
        *(
            ("provenance", value, "model.json: is damaged")
            for value in ([], {"config": [1]}, {"summary": {"steps": "many"}}, {"versions": {"must": [1]}})
        ),
        ("architecture", 1, "model.json: is damaged"),
        ("backbone", None, "model.json: is damaged"),
        ("classes", [1, [2]], "model.json: is damaged"),
        ("classes", ["a", "b"], "model.json: names 2 classes, model.safetensors has 10"),
        ("preprocess", {"std": [0, 1, 1]}, "model.json: .*mean or deviation out of range"),
        ("format", 99, "its format is '99', and must .* reads format 1"),  # whatever version it says that it is of
        ("format", 0, "its format is '0', and must .* reads format 1"),
        ("format", float("nan"), "its format is 'nan', and must .* reads format 1"),
    ],
)
def test_a_description_with_other_values_is_one_line(digits, tmp_path, name, value, message):
    folder = rewritten(digits.zero_shot, "model.json", tmp_path, lambda values: values.update({name: value}))
    with pytest.raises(ValueError, match=f"{folder}.*{message}"):
        load_bundle(folder)


@pytest.mark.parametrize(
    "selection", ["x", [1], {"alpha": "much"}, {"alpha": 1.5}, {"alpha": 0.5, "measured": {"a": 1}}]
)
def test_a_selection_that_cannot_be_understood_is_none(selection):
    assert Selection.of_dict(selection) is None
