"""`must refine` on the bundled digits."""

import csv
import io
import json

import numpy as np
import pytest
from must.method.select.refine import refine
from must.method.select.select import select
from PIL import Image

from must.api.demo import digit_parts
from must.config import RefineConfig, SelectConfig, ShardConfig
from must.data.shards.build import shard


def run(digits, output, **changes):
    values = {"shards": digits.shards, "classifier": digits.classifier, "output": str(output)}
    return refine(RefineConfig(**{**values, "workers": 0, "device": "cpu", **changes}))


def rows_of(output):
    return list(csv.DictReader(io.StringIO((output / "predictions.csv").read_text())))


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """(shards of 500 unlabeled digits, their classes by file name)."""
    root = tmp_path_factory.mktemp("many")
    classes = {}
    (root / "images").mkdir()
    for number, (image, label) in enumerate(digit_parts()["unlabeled"][:500]):
        image.save(root / "images" / f"{number:04d}.png")
        classes[f"{number:04d}.png"] = label
    shard(ShardConfig(source=str(root / "images"), output=str(root / "shards"), workers=1))
    return str(root / "shards"), classes


@pytest.fixture(scope="module")
def done(digits, many, tmp_path_factory):
    output = tmp_path_factory.mktemp("refined")
    return run(digits, output, shards=many[0], model=digits.adapted), output


def accuracy(rows, truth, column):
    return np.mean([row[column] == truth[row["image"]] for row in rows])


def test_labels_are_better_than_zero_shots(done, many):
    story, output = done
    rows, truth = rows_of(output), many[1]
    assert len(rows) == story["images"] == 500 and {row["image"] for row in rows} == set(truth)
    assert list(rows[0]) == [
        "image", "class", "confidence", "zero_shot", "zero_shot_confidence", "model", "model_confidence",
    ]  # fmt: skip
    assert accuracy(rows, truth, "class") > accuracy(rows, truth, "zero_shot") + 0.02
    assert story["changed"] == pytest.approx(np.mean([row["class"] != row["zero_shot"] for row in rows]))
    assert all(0 < float(row[f"{name}confidence"]) <= 1 for row in rows for name in ("", "zero_shot_", "model_"))
    assert json.loads((output / "refined.json").read_text()) == story


def test_without_a_model_zero_shots_labels_are_refined(digits, many, tmp_path):
    run(digits, tmp_path, shards=many[0])
    rows = rows_of(tmp_path)
    assert "model" not in rows[0]
    assert accuracy(rows, many[1], "class") > accuracy(rows, many[1], "zero_shot")


def test_the_model_that_is_kept_is_the_one_that_counts(digits, tmp_path):
    values = {"baseline": digits.classifier, "shards": digits.shards, "workers": 0, "device": "cpu"}
    select(SelectConfig(**values, model=digits.adapted, output=str(tmp_path / "model"), alpha=0.0))
    select(SelectConfig(**values, model=digits.adapted, output=str(tmp_path / "model/adapted"), alpha=1.0))
    run(digits, tmp_path / "part", model=str(tmp_path / "model"))
    rows = rows_of(tmp_path / "part")
    assert [row["model"] for row in rows] == [row["zero_shot"] for row in rows]


@pytest.mark.slow
def test_the_same_again_gives_the_same_bytes_whatever_the_workers(done, digits, many, tmp_path):
    run(digits, tmp_path, shards=many[0], model=digits.adapted, workers=1)
    assert (tmp_path / "predictions.csv").read_bytes() == (done[1] / "predictions.csv").read_bytes()


def test_few_images_and_pictures_that_show_nothing_have_labels_too(digits, tmp_path):
    rng = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    for number in range(3):
        Image.fromarray(rng.integers(0, 256, (32, 32), np.uint8)).save(tmp_path / f"images/{number}.png")
    shard(ShardConfig(source=str(tmp_path / "images"), output=str(tmp_path / "shards"), workers=1))
    for images in (3, 1):
        story = run(digits, tmp_path / "out", shards=str(tmp_path / "shards"), images=images)
        assert story["images"] == len(rows_of(tmp_path / "out")) == images


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"split": "trian"}, "hold no split 'trian'"),
        ({"classifier": "none"}, "--classifier none: no such file"),
        ({"model": "none"}, "none"),
        ({"images": "0"}, "--images must be at least 1"),
    ],
    ids=lambda value: "" if isinstance(value, str) else next(iter(value)),
)
def test_wrong_input_is_one_line_and_leaves_nothing(digits, tmp_path, monkeypatch, refusal, wrong, message):
    monkeypatch.chdir(tmp_path)
    flags = {"shards": digits.shards, "classifier": digits.classifier, "output": "out", **wrong}
    assert message in refusal("refine", flags)
    assert not list(tmp_path.iterdir())
