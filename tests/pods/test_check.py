"""What a run refuses before a GPU's node is started: by its parameters, where it is started; by a look at what they
name, in the stage inputs; by the data and the model, in the stage champion. What only a later stage can know is not
here: a device, a place that is full or held by another run, images that cannot be read any more, int8 that differs."""

import json
import re
import shutil
import subprocess
import sys
from contextlib import nullcontext

import pytest
import torch
import yaml
from PIL import Image

from must.config import ShardConfig
from must.data.format import load_index
from must.data.shards.build import shard
from must.model.classifier import TextClassifier, save_classifier
from must.pods.check import check_inputs, check_run
from must.pods.notes import Facts
from must.pods.stages import champion
from must.pods.training import make_job_values
from must_pipeline.cli import call
from tests.common import ended, one_line
from tests.pipeline.compiled import COMPILED
from tests.zoo import put

PLACES = {"source": "gs://b/photos", "classes": "imagenet", "work_uri": "/nowhere"}
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
    ({"source": ""}, "source is empty"),
    ({"work_uri": ""}, "work_uri is empty"),
    ({"test_source": "gs://b/test"}, "--test-source: test images need labels to measure with; give --labels"),
    ({"split": "val=1"}, "split: the pipeline trains on the split train; give it a share"),
    ({"settings": {"split": "foo"}}, "settings.split: is set by the pipeline or a parameter of it"),
    ({"settings": {"device": "gpu"}}, "--device gpu: expected auto, cpu, cuda, cuda:N or mps"),
    ({"gate": "labelled"}, "gate labelled: there will be no labels; give test_source and labels, or gate:"),
]  # fmt: skip
RIGHT = [
    {},
    {"settings": {"lr": 1e-5, "batch-size": 64}, "preset": "digits", "model": "gs://b/model", "epochs": 3},
    {"preset": "imagenet", "model": "ViT-B-16-quickgelu"},
    {"gate": "labelled", "gate_settings": {"min_gain": 0.01, "min_images": 50}, "labels": "folder"},
    {"gate": "labelled", "append": True},  # the shards that are there may have labels
    {"gate": "none", "model_name": "cats.v2"},
    {"shard_settings": {"max_rejected": 0.05, "workers": 2}, "split": "train=0.9,test=0.1", "labels": "folder"},
]
IN_INPUTS = [
    ({"source": "{folder}/empty"}, "source {folder}/empty: no images in there, known endings are .jpg,"),
    ({"source": "{bucket}/nothing"}, "source {bucket}/nothing: no images in there"),
    ({"source": "{folder}/nowhere"}, "source {folder}/nowhere: there is no such folder or file"),
    ({"test_source": "{bucket}/x", "labels": "folder"}, "test_source {bucket}/x: no images in there"),
    ({"evaluate_split": "nope"}, "evaluate_split nope: there will be no such split; there are: train"),
    ({"split": "train=0.9,val=0.1,test=0", "evaluate_split": "test"}, "no such split; there are: train, v"),
    ({"settings": {"class-prior": "given"}}, "--class-prior given: {folder}/classes.yaml holds no class sha"),
]  # fmt: skip
NAMED = [  # by the stage inputs, without images
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
]  # fmt: skip
IN_CHAMPION = [
    ({"settings": {"batch_size": 151}}, "--batch-size 151: the split holds 150 images only"),
    ({"processes": 7}, "--batch-size 16: must be a multiple of the number of processes (7)"),
    ({"settings": {"accumulate": 3}}, "--accumulate 3: must divide the 16 images that each process takes"),
    ({"preset": "imagenet"}, "--preset imagenet: published for ViT-B/16 and ViT-L/14 only, not for "),
    ({"settings": {"mask_patch_size": 5}}, "--mask-patch-size 5: must be a multiple of the model's patch (8"),
    ({"settings": {"mask-ratio": 0.99}}, "--mask-ratio 0.99: would mask all of the image's"),
    ({"settings": {"randaugment": "m9"}}, "--randaugment m9 / --randaugment-ops"),
]  # fmt: skip


@pytest.mark.parametrize("values, message", WRONG, ids=lambda it: json.dumps(it) if isinstance(it, dict) else "")
def test_what_a_stage_would_refuse_is_refused(values, message):
    with one_line(re.escape(message)):
        check_run(PLACES | values)


@pytest.mark.parametrize("values", RIGHT, ids=json.dumps)
def test_what_the_stages_take_is_taken(values):
    check_run(PLACES | values)


def test_a_run_on_this_machine_refuses_it_too(tmp_path, monkeypatch, capsys):
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(PLACES | {"gate_settings": {"min_gian": 0.1}}))
    words = ["--pipeline", COMPILED, "--parameters", tmp_path / "run.yaml", "--output", tmp_path / "out"]
    monkeypatch.setattr(sys, "argv", ["must-pipeline run", *map(str, words)])
    assert "must-pipeline run: gate_settings.min_gian: unknown" in ended(capsys, 2, call, "run")
    assert not (tmp_path / "out").exists()


@pytest.fixture
def run(tmp_path, bucket_server):
    """Parameters of a run whose images and model are folders, and a function that fills in {folder} and {bucket}."""
    answer = json.dumps({"sha256": "0" * 64, "label": "kiwi"}).encode() + b"\n"
    put(tmp_path, {"classes.yaml": b"classes: [cat, dog]\n", "model/open_clip_config.json": b"{}"})
    put(tmp_path, {"images/cat/a.jpg": b"-", "empty/read.txt": b"-"})
    put(tmp_path, {"one.yaml": b"classes: [cat]", "none.jsonl": b"", "other.jsonl": answer})
    names = {"source": "images", "classes": "classes.yaml", "model": "model", "work_uri": "work"}

    def fill(value):
        text = json.dumps(value).replace("{folder}", str(tmp_path)).replace("{bucket}", bucket_server.uri)
        return json.loads(text)

    return {name: f"{tmp_path}/{file}" for name, file in names.items()}, fill


@pytest.mark.parametrize("values, message", IN_INPUTS, ids=json.dumps)
def test_the_first_stage_looks_at_what_the_names_stand_for(run, values, message):
    right, fill = run
    with one_line(re.escape(fill(message))):
        check_inputs(right | fill(values), right["work_uri"])


@pytest.mark.parametrize("change, message", NAMED, ids=json.dumps)
def test_the_first_stage_looks_at_classes_model_and_answers(run, change, message):
    values = {"classes": "imagenet", "model": "ViT-B-16-quickgelu", "pretrained": "openai"}
    check_inputs(values)
    check_inputs({"classes": "imagenet", "model": "ViT-B-16/openai"})
    with pytest.raises(ValueError, match=re.escape(message)):
        check_inputs(values | run[1](change))


def test_what_can_be_trained_on_passes(run, tmp_path):
    right, _ = run
    put(tmp_path, {"list.csv": b"path,split\na.jpg,val\n", "work/shards/index.json": b"{}"})
    assert check_inputs(right, right["work_uri"])[0] == "1 image, 2 classes"
    test = {"test_source": right["source"], "labels": "folder"}
    assert check_inputs(right | test, right["work_uri"])[0] == "1 image, 2 classes, 1 test image"
    for values in (
        {"split": "train=0.9,val=0.1", "evaluate_split": "val"},
        {"source": f"{tmp_path}/list.csv", "evaluate_split": "val"},  # it has splits of its own
        {"source": f"{tmp_path}/empty", "append": True, "evaluate_split": "val"},  # its images are in the shards
    ):
        check_inputs(right | values, right["work_uri"])


def test_a_place_that_cannot_be_written_to_is_said_before_the_training_and_nothing_stays(run, tmp_path):
    right, _ = run
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=rf"^registry_uri {tmp_path}/file/.*: cannot be read and written: "):
        check_inputs(right | {"registry_uri": f"{tmp_path}/file/there"}, right["work_uri"])
    check_inputs(right | {"registry_uri": f"{tmp_path}/registry"}, right["work_uri"])
    assert not [path for path in tmp_path.rglob("*") if path.name.startswith(".must")]


def test_a_model_in_a_folder_is_looked_at_without_torch(run):
    code = "import sys; from must.pods.check import check_inputs; "
    code += f"check_inputs({run[0]!r}, {run[0]['work_uri']!r}); sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.fixture(scope="module")
def trainable(digits, tmp_path_factory):
    work = tmp_path_factory.mktemp("work")
    shutil.copytree(digits.shards, work / "shards")
    return work, digits.classifier


def ask(work, classifier, **changes):
    values = {"preset": "", "settings": {}, "epochs": 0, "gate": "auto"} | changes
    return champion(
        Facts(), str(work), registry_uri="", model_name="digits", index_sha256=load_index(str(work / "shards")).sha256,
        classifier=str(classifier), only_new=False, **values,
    )  # fmt: skip


@pytest.mark.parametrize("values, message", IN_CHAMPION, ids=json.dumps)
def test_from_the_data_and_the_model(trainable, values, message):
    assert ask(*trainable)["action"] == "train"
    with one_line(re.escape(message)):
        ask(*trainable, **values)


@pytest.mark.parametrize("source, test, said", [
    ("2024", "dog", None),  # folders of the source are no labels that anything is measured with
    ("cat", "hund", "labels of the split test that are no class: 'hund' (1 image); rename the labels or the classes"),
])  # fmt: skip
def test_labels_that_are_no_class(tmp_path, source, test, said):
    with one_line(re.escape(said)) if said else nullcontext():
        ask(tmp_path, make_small(tmp_path, source, test))


def make_small(folder, source, test, **more):
    """Shards with two images of the label `source`, and a cat and one of the label `test` in the split test; returns
    the file of a classifier of cats and dogs."""
    for number, place in enumerate((f"in/{source}", f"in/{source}", "test/cat", f"test/{test}")):
        (folder / place).mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (number, 0, 0)).save(folder / place / f"{number}.png")
    sources = {"source": f"{folder}/in", "test_source": f"{folder}/test", "labels": "folder"}
    shard(ShardConfig(**sources, output=f"{folder}/shards", workers=1))
    classes = TextClassifier(("cat", "dog"), ("a {}",), "tiny", "", 100.0, weights=torch.eye(2), **more)
    save_classifier(classes, f"{folder}/classifier.safetensors")
    return folder / "classifier.safetensors"


def test_a_model_that_no_onnx_file_can_hold(tmp_path):
    header = {"visual.a": {"shape": [1 << 10, 1 << 19]}, "text.b": {"shape": [1 << 40]}}
    data = json.dumps(header).encode()
    put(tmp_path, {"models/big/open_clip_config.json": b"{}"})
    put(tmp_path, {"models/big/open_clip_model.safetensors": len(data).to_bytes(8, "little") + data})
    classifier = make_small(tmp_path, "cat", "dog", model_folder=f"{tmp_path}/models/big")
    with one_line(r"image tower has 2\.1 GB, one ONNX file can hold 2; take a smaller model"):
        ask(tmp_path, classifier)


def test_settings_may_be_written_as_flags(digits, tmp_path):
    given = {"index_sha256": "", "classifier": digits.classifier, "preset": "", "epochs": 0}
    _, values = make_job_values(str(tmp_path), **given, settings={"batch-size": 64})
    assert values["batch_size"] == 64
