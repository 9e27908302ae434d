"""Models from others: a bundle fetches nothing, whatever it says, and no model folder gets its own code run."""

import json
import shutil
import socket
from functools import reduce
from unittest.mock import Mock

import pytest

from must.api.demo import find_assets
from must.model.backbone import load_backbone
from must.model.bundle import load_bundle
from must.model.description import Selection


@pytest.fixture
def asked(monkeypatch):
    """What looks hosts up, and finds none."""
    look_up = Mock(side_effect=socket.gaierror(-2, "this test has no network"))
    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    return look_up


def rewritten(original, file, tmp_path, place, values):
    """A copy of a folder, in one of whose JSON files these values are changed, in the mapping at a place."""
    folder = tmp_path / "copy"
    shutil.copytree(original, folder)
    content = json.loads((folder / file).read_text())
    reduce(dict.__getitem__, place, content).update(values)
    (folder / file).write_text(json.dumps(content))
    return str(folder)


NAMES = ["hf-hub:attacker/x", "hf_hub:attacker/x", "HF-HUB:attacker/x", "local-dir:/etc", "attacker/x", "", ["x"], 5]
TIMMS = {"timm_model_name": "vit_tiny_patch16_224", "timm_model_pretrained": True}
OWN_CODE = {"hf_tokenizer_name": "x", "tokenizer_kwargs": {"trust_remote_code": True}}
FOREIGN = [  # of a bundle or a model folder: the place in its file, what is changed there, what is said
    *((["architecture", "vision_cfg"], {"timm_model_name": name},
       r"model.json: its image tower is called .* none of timm's own models") for name in NAMES),
    # it is built, without its weights: then the bundle's do not fit
    (["architecture"], {"vision_cfg": TIMMS}, r"model.safetensors: is damaged or of another model"),
    (["model_cfg", "text_cfg"], OWN_CODE, "asks to run its own code"),
    (["preprocess_cfg"], {"std": [0, 0, 0]}, "--model {}: the model's preprocessing has a mean or deviation out of"),
]  # fmt: skip


@pytest.mark.parametrize("place, values, message", FOREIGN)
def test_a_model_that_asks_for_what_it_may_not_is_refused_and_no_host_is_looked_up(
    digits, tmp_path, asked, place, values, message
):
    is_bundle = place[0] == "architecture"
    original, file = (digits.zero_shot, "model.json") if is_bundle else (find_assets(), "open_clip_config.json")
    folder = rewritten(original, file, tmp_path, place, values)
    with pytest.raises(ValueError, match=message.format(folder)):
        (load_bundle if is_bundle else load_backbone)(folder)
    assert asked.mock_calls == []


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
    folder = rewritten(digits.zero_shot, "model.json", tmp_path, [], {name: value})
    with pytest.raises(ValueError, match=f"{folder}.*{message}"):
        load_bundle(folder)


@pytest.mark.parametrize(
    "selection", ["x", [1], {"alpha": "much"}, {"alpha": 1.5}, {"alpha": 0.5, "measured": {"a": 1}}]
)
def test_a_selection_that_cannot_be_understood_is_none(selection):
    assert Selection.of_dict(selection) is None
