"""Why train, evaluate, export, gate or promote can refuse a run, and which stage could have known it first: it says so,
before a GPU's node is started. What only these stages can know is not here: a device, a place that is full or held by
another run, shards or a champion that changed meanwhile, images that cannot be read any more, int8 that differs."""

import json
import re
import shutil
from contextlib import nullcontext

import pytest
import torch
from PIL import Image

from must.config import ShardConfig
from must.data.format import load_index
from must.data.shards.build import shard
from must.method.model.classifier import TextClassifier, save_classifier
from must.runtime.check import check_inputs, check_run
from must.runtime.notes import Facts
from must.runtime.stages import champion
from must.runtime.training import make_job_values
from tests.common import one_line
from tests.zoo import put

PLACES = {"source": "gs://b/photos", "classes": "imagenet", "work_uri": "gs://b/work"}
AT_THE_START = [  # refused by, the parameters, what is said: by submit, schedule and run, and by the stage inputs
    ("shard", {"source": ""}, "source is empty"),
    ("champion", {"work_uri": ""}, "work_uri is empty"),
    ("shard", {"test_source": "gs://b/test"}, "--test-source: test images need labels to measure with; give --labels"),
    ("train", {"split": "val=1"}, "split: the pipeline trains on the split train; give it a share"),
    ("train", {"split": "train=0,val=1"}, "split: the pipeline trains on the split train; give it a share"),
    ("train", {"settings": {"split": "foo"}}, "settings.split: is set by the pipeline or a parameter of it"),
    ("train", {"settings": {"device": "gpu"}}, "--device gpu: expected auto, cpu, cuda, cuda:N or mps"),
    ("gate", {"gate": "labelled"}, "gate labelled: there will be no labels; give test_source and labels, or gate:"),
]  # fmt: skip
IN_INPUTS = [
    ("train", {"source": "{folder}/empty"}, "source {folder}/empty: no images in there, known endings are .jpg,"),
    ("train", {"source": "{bucket}/nothing"}, "source {bucket}/nothing: no images in there"),
    ("train", {"source": "{folder}/nowhere"}, "source {folder}/nowhere: there is no such folder or file"),
    ("gate", {"test_source": "{bucket}/x", "labels": "folder"}, "test_source {bucket}/x: no images in there"),
    ("evaluate", {"evaluate_split": "nope"}, "evaluate_split nope: there will be no such split; there are: train"),
    ("evaluate", {"split": "train=0.9,val=0.1,test=0", "evaluate_split": "test"}, "no such split; there are: train, v"),
    ("train", {"settings": {"class-prior": "given"}}, "--class-prior given: {folder}/classes.yaml holds no class sha"),
]  # fmt: skip
IN_CHAMPION = [
    ("train", {"settings": {"batch_size": 151}}, "--batch-size 151: the split holds 150 images only"),
    ("train", {"processes": 7}, "--batch-size 16: must be a multiple of the number of processes (7)"),
    ("train", {"settings": {"accumulate": 3}}, "--accumulate 3: must divide the 16 images that each process takes"),
    ("train", {"preset": "imagenet"}, "--preset imagenet: published for ViT-B/16 and ViT-L/14 only, not for "),
    ("train", {"settings": {"mask_patch_size": 5}}, "--mask-patch-size 5: must be a multiple of the model's patch (8"),
    ("train", {"settings": {"mask-ratio": 0.99}}, "--mask-ratio 0.99: would mask all of the image's"),
    ("train", {"settings": {"randaugment": "m9"}}, "--randaugment m9 / --randaugment-ops"),
    ("evaluate", {"evaluate_split": "val"}, "the shards hold no split 'val'; there are: train (150 images), test (120"),
    ("gate", {"gate": "labelled", "gate_settings": {"min-images": 121}}, "the split test has 120 labelled images, m"),
]  # fmt: skip


@pytest.mark.parametrize("values, message", [row[1:] for row in AT_THE_START], ids=json.dumps)
def test_from_the_parameters_alone(values, message):
    with one_line(re.escape(message)):
        check_run(PLACES | values)


@pytest.fixture
def run(tmp_path, bucket_server):
    """Parameters of a run whose images are in a folder, and where {folder} and {bucket} are."""
    put(tmp_path, {"classes.yaml": b"classes: [cat, dog]\n", "model/open_clip_config.json": b"{}"})
    put(tmp_path, {"images/cat/a.jpg": b"-", "empty/read.txt": b"-"})
    places = {"{folder}": str(tmp_path), "{bucket}": bucket_server.uri}
    names = {"source": "images", "classes": "classes.yaml", "model": "model", "work_uri": "work"}
    return {name: f"{tmp_path}/{file}" for name, file in names.items()}, places


def fill(text, places):
    for name, place in places.items():
        text = text.replace(name, place) if isinstance(text, str) else text
    return text


@pytest.mark.parametrize("values, message", [row[1:] for row in IN_INPUTS], ids=json.dumps)
def test_from_a_look_at_what_they_name(run, values, message):
    right, places = run
    with one_line(re.escape(fill(message, places))):
        check_inputs(right | {name: fill(value, places) for name, value in values.items()}, right["work_uri"])


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


@pytest.mark.parametrize("values, message", [row[1:] for row in IN_CHAMPION], ids=json.dumps)
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
