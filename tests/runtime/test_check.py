"""A run's parameters are refused where it is started, and by its first stage, before an image is read."""

import json
import re
import subprocess
import sys

import pytest
import yaml

from must.runtime.check import check_inputs, check_run
from must_pipeline.cli import call
from tests.common import ended, one_line
from tests.pipeline.compiled import COMPILED
from tests.zoo import put

WRONG = [
    ({"settings": {"lrr": 1}}, "settings.lrr: unknown; did you mean 'lr'?"),
    ({"settings": {"batch_size": 0}}, "settings: --batch-size must be at least 1"),
    ({"settings": {"shards": "x"}}, "settings.shards: is set by the pipeline or a parameter of it"),
    ({"epochs": -1}, "epochs -1: passes over the images"),
    ({"preset": "imagnet"}, "--preset imagnet: unknown; did you mean 'imagenet'"),
    ({"preset": "imagenet", "model": "RN50"}, "published for ViT-B/16 and ViT-L/14 only"),
    ({"gate": "lable-free"}, "gate must be one of auto, labelled, label-free, none (got 'lable-free')"),
    ({"gate_settings": {"min_gian": 0.1}}, "gate_settings.min_gian: unknown; did you mean 'min_gain'?"),
    (
        {"gate": "label-free", "gate_settings": {"min_gain": 0.9}},
        "gate_settings.min_gain: belongs to the gates auto and labelled; this run has gate 'label-free'",
    ),
    ({"gate": "labelled", "gate_settings": {"min_gain": 2}}, "gate_settings: --min-gain must be at least -1"),
    ({"precision": "fp61"}, "precision must be one of fp32, int8 (got 'fp61')"),
    ({"labels": "folders"}, "--labels must be one of folder, csv, none (got 'folders')"),
    ({"split": "train=0.9"}, "--split must add up to 1"),
    ({"shard_settings": {"test-source": 1}}, "shard_settings.test_source: is set by the pipeline or a parameter of it"),
    ({"shard_settings": {"max_rejeced": 1}}, "shard_settings.max_rejeced: unknown; did you mean 'max_rejected'?"),
    ({"shard_settings": {"max_pixels": 0}}, "shard_settings: --max-pixels must be at least 1 and at most"),
    ({"model": ""}, "model is empty"),
    ({"settings": {"batch-size": 8, "batch_size": 9}}, "batch_size is given twice, as batch-size too; give it once"),
    ({"model_name": "My Model"}, "--name My Model: use small letters, digits"),
]  # fmt: skip
RIGHT = [
    {},
    {"settings": {"lr": 1e-5, "batch-size": 64}, "preset": "digits", "model": "gs://b/model", "epochs": 3},
    {"preset": "imagenet", "model": "ViT-B-16-quickgelu"},
    {"gate": "labelled", "gate_settings": {"min_gain": 0.01, "min_images": 50}, "labels": "folder"},
    {"gate": "labelled", "append": True},  # the shards that are there may have labels
    {"gate": "none", "register": "mlflow", "model_name": "cats.v2"},
    {"shard_settings": {"max_rejected": 0.05, "workers": 2}, "split": "train=0.9,test=0.1", "labels": "folder"},
]
PLACES = {"source": "gs://b/photos", "classes": "imagenet", "work_uri": "/nowhere"}


@pytest.mark.parametrize("values, message", WRONG, ids=lambda it: json.dumps(it) if isinstance(it, dict) else "")
def test_what_a_stage_would_refuse_is_refused(values, message):
    with one_line(re.escape(message)):
        check_run(PLACES | values)


@pytest.mark.parametrize("values", RIGHT, ids=json.dumps)
def test_what_the_stages_take_is_taken(values):
    check_run(PLACES | values)


@pytest.mark.parametrize("door", ["submit", "run"])
def test_every_door_refuses_it(door, tmp_path, monkeypatch, capsys):
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(PLACES | {"gate_settings": {"min_gian": 0.1}}))
    words = ["--pipeline", COMPILED, "--parameters", tmp_path / "run.yaml"]
    words += ["--output", tmp_path / "out"] if door == "run" else ["--host", "http://127.0.0.1:9"]
    monkeypatch.setattr(sys, "argv", [door, *map(str, words)])
    assert f"{door}: gate_settings.min_gian: unknown" in ended(capsys, 2, call, door)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "change, message",
    [
        ({"classes": "{folder}/no.yaml"}, "no such file"),
        ({"classes": "{folder}/one.yaml"}, "needs at least two classes"),
        ({"model": "ViT-B-17"}, "--model ViT-B-17: no open_clip model and no folder; did you mean"),
        ({"model": "{folder}"}, "no open_clip_config.json in this folder"),
        ({"model": "ftp://b/model"}, "unknown scheme 'ftp://'"),
        ({"pretrained": "opanai"}, "no tag of ViT-B-16-quickgelu; give one of"),
        ({"pretrained": "{bucket}/weights.pt"}, "no such file"),
        ({"model": "ViT-B-16/openia", "pretrained": ""}, "no such file and no tag of ViT-B-16; give one of"),
        ({"model": "ViT-B-16/openai", "pretrained": "laion400m_e31"}, "already says --pretrained openai"),
        ({"answers": "{folder}/no.jsonl"}, "no.jsonl: no such file"),
        ({"answers": "{folder}/none.jsonl"}, "there are no answers in it"),
        ({"answers": "{folder}/other.jsonl"}, "other.jsonl: there are no answers in it with a class of this run"),
        ({"answers": "{folder}"}, "expected answers.jsonl of `must review`"),
    ],
)
def test_the_first_stage_looks_at_what_the_names_stand_for(tmp_path, bucket_server, change, message):
    answer = json.dumps({"sha256": "0" * 64, "label": "kiwi"}).encode() + b"\n"
    put(tmp_path, {"one.yaml": b"classes: [cat]", "none.jsonl": b"", "other.jsonl": answer})
    for name, place in {"{folder}": str(tmp_path), "{bucket}": bucket_server.uri}.items():
        change = {key: value.replace(name, place) for key, value in change.items()}
    values = {"classes": "imagenet", "model": "ViT-B-16-quickgelu", "pretrained": "openai"}
    check_inputs(values)
    check_inputs({"classes": "imagenet", "model": "ViT-B-16/openai"})
    with pytest.raises(ValueError, match=re.escape(message)):
        check_inputs(values | change)


@pytest.fixture
def run(tmp_path):
    """Parameters of a run whose model is a folder."""
    put(tmp_path, {"classes.yaml": b"classes: [cat, dog]\n", "model/open_clip_config.json": b"{}"})
    return {"classes": f"{tmp_path}/classes.yaml", "model": f"{tmp_path}/model"}


def test_a_place_that_cannot_be_written_to_is_said_before_the_training_and_nothing_stays(tmp_path, run):
    (tmp_path / "file").write_text("")
    work = str(tmp_path / "work")
    with pytest.raises(ValueError, match=rf"^registry_uri {tmp_path}/file/.*: cannot be read and written: "):
        check_inputs(run | {"registry_uri": f"{tmp_path}/file/there"}, work)
    check_inputs(run | {"registry_uri": f"{tmp_path}/registry"}, work)
    assert not [path for path in tmp_path.rglob("*") if path.name.startswith(".must")]


def test_a_model_in_a_folder_is_looked_at_without_torch(tmp_path, run):
    code = "import sys; from must.runtime.check import check_inputs; "
    code += f"check_inputs({run!r}, {str(tmp_path / 'work')!r}); sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
