"""`must refine` on the bundled digits."""

import csv
import io
import json

import numpy as np
import pytest
import torch
from PIL import Image

from must.api import cli
from must.api.demo.data import CLASSES, digit_parts
from must.config import EvaluateConfig, RefineConfig, ShardConfig
from must.data.augment.normalize import normalize
from must.data.shards.build import shard
from must.evaluation.evaluate import evaluate
from must.method.model.bundle import preprocess_of, zero_shot_bundle
from must.method.model.classifier import load_text_classifier
from must.method.select.refine import refine
from tests.evaluate.digits import pixels_of


def run(digits, output, **changes):
    values = {"shards": digits.shards, "classifier": digits.classifier, "output": str(output)}
    return refine(RefineConfig(**{**values, "workers": 0, "device": "cpu", **changes}))


def rows_of(output):
    return list(csv.DictReader(io.StringIO((output / "predictions.csv").read_text())))


@pytest.fixture(scope="module")
def many(digits, tmp_path_factory):
    """(shards of 500 unlabeled digits, their classes by file name, 300 other images with their classes)."""
    root = tmp_path_factory.mktemp("many")
    parts = digit_parts()
    classes = {}
    for number, (image, label) in enumerate(parts["unlabeled"][:500]):
        (root / "images").mkdir(exist_ok=True)
        image.save(root / "images" / f"{number:04d}.png")
        classes[f"{number:04d}.png"] = label
    shard(ShardConfig(source=str(root / "images"), output=str(root / "shards"), workers=1))
    return str(root / "shards"), classes, parts["test"][:300]


@pytest.fixture(scope="module")
def done(digits, many, tmp_path_factory):
    torch.set_num_threads(1)
    output = tmp_path_factory.mktemp("refined")
    return run(digits, output, shards=many[0]), output


def right(classifier, test):
    bundle = zero_shot_bundle(classifier)
    pixels = torch.from_numpy(pixels_of(bundle, [image for image, _ in test]))
    with torch.inference_mode():
        said = bundle.model(normalize(pixels, preprocess_of(bundle.description))).argmax(1)
    return np.mean([CLASSES[number] == label for number, (_, label) in zip(said.tolist(), test, strict=True)])


def test_predictions_are_better_than_zero_shots(done, many):
    story, output = done
    rows, truth = rows_of(output), many[1]
    assert len(rows) == 500 and {row["image"] for row in rows} == set(truth)
    old, new = (np.mean([row[key] == truth[row["image"]] for row in rows]) for key in ("zero_shot", "class"))
    assert new > old + 0.02
    assert story["changed"] == np.mean([row["class"] != row["zero_shot"] for row in rows])
    assert all(0 < float(row["probability"]) <= 1 for row in rows)


def test_the_classifier_is_better_on_images_it_never_saw(done, digits, many):
    story, output = done
    ours, text = load_text_classifier(str(output / "classifier.safetensors")), load_text_classifier(digits.classifier)
    assert story["classifier"]["alpha"] > 0 and not story["kept_zero_shot"]
    assert ours.classes == text.classes and ours.model == text.model and ours.logit_scale == text.logit_scale
    assert torch.allclose(ours.weights.norm(dim=0), torch.ones(10), atol=1e-5)
    assert right(ours, many[2]) > right(text, many[2])


def test_a_report_says_that_the_baseline_is_refined(done, digits, tmp_path, capsys):
    values = {"model": digits.adapted, "baseline": str(done[1] / "classifier.safetensors"), "shards": digits.shards}
    metrics = evaluate(EvaluateConfig(**values, split="test", output=str(tmp_path), workers=0, device="cpu"))
    assert metrics["baseline_name"] == "refined zero-shot" and "refined zero-shot" in capsys.readouterr().out
    assert "refined zero-shot" in (tmp_path / "report.html").read_text()


@pytest.mark.slow
def test_the_same_again_gives_the_same_bytes_whatever_the_batch(done, digits, many, tmp_path):
    run(digits, tmp_path, shards=many[0], workers=1)
    for name in ("predictions.csv", "classifier.safetensors"):
        assert (tmp_path / name).read_bytes() == (done[1] / name).read_bytes()
    run(digits, tmp_path, shards=many[0], batch_size=7)
    assert [row["class"] for row in rows_of(tmp_path)] == [row["class"] for row in rows_of(done[1])]


@pytest.fixture(scope="module")
def noise(tmp_path_factory):
    """Shards of pictures that show nothing, so that their look-alikes are like them by chance."""
    root = tmp_path_factory.mktemp("noise")
    rng = np.random.default_rng(0)
    (root / "images").mkdir()
    for number in range(120):
        coarse = Image.fromarray(rng.integers(0, 256, (7, 7), np.uint8))
        coarse.resize((32, 32), Image.Resampling.BICUBIC).save(root / "images" / f"{number}.png")
    shard(ShardConfig(source=str(root / "images"), output=str(root / "shards"), workers=1))
    return str(root / "shards")


@pytest.mark.parametrize(
    "images, reason", [(120, "prefer their class to the runner-up in"), (40, "fewer than 50 different images")]
)
def test_where_look_alikes_know_nothing_zero_shot_is_kept_to_the_bit(digits, noise, tmp_path, capsys, images, reason):
    story = run(digits, tmp_path, shards=noise, images=images)
    rows = rows_of(tmp_path)
    assert story["kept_zero_shot"] and story["changed"] == 0 and story["classifier"] is None
    assert all(row["class"] == row["zero_shot"] and row["probability"] == row["zero_shot_probability"] for row in rows)
    with open(digits.classifier, "rb") as file:
        assert (tmp_path / "classifier.safetensors").read_bytes() == file.read()
    assert f"kept zero-shot: {story['reason']}" in capsys.readouterr().out and reason in story["reason"]
    assert json.loads((tmp_path / "refined.json").read_text()) == story


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"shards": "nowhere"}, "nowhere holds no index.json"),
        ({"split": "trian"}, "hold no split 'trian'"),
        ({"classifier": "none"}, "--classifier none: no such file"),
        ({"images": "0"}, "--images must be at least 1"),
    ],
    ids=lambda value: "" if isinstance(value, str) else next(iter(value)),
)
def test_wrong_input_is_one_line_and_leaves_nothing(digits, tmp_path, monkeypatch, capsys, wrong, message):
    monkeypatch.chdir(tmp_path)
    values = {"shards": digits.shards, "classifier": digits.classifier, "output": "out", **wrong}
    with pytest.raises(SystemExit) as end:
        cli.main(["refine", *(part for name, value in values.items() for part in (f"--{name}", value))])
    (line,) = capsys.readouterr().err.splitlines()
    assert end.value.code == 2 and message in line and line.startswith("must refine: ")
    assert not list(tmp_path.iterdir())
