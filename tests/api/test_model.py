"""`must.load`: one line from a model of any kind to the class of whatever looks like an image."""

import itertools
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import must
from must.api.demo import CLASSES, find_assets
from tests.common import one_line


@pytest.fixture(scope="module")
def onnx(friday):
    return must.load(friday / "work/onnx")


@pytest.fixture(scope="module")
def paths(digits):
    return [str(path) for path in sorted(digits.images.glob("test/*/*.png"))[:40]]


def test_one_image_is_one_answer_whatever_it_is(onnx, paths):
    path = paths[7]
    picture = Image.open(path)
    expected = onnx(path)
    assert expected.name in CLASSES and expected.image == path and len(expected.top) == 5
    for item in (Path(path), picture, np.asarray(picture.convert("RGB")), Path(path).read_bytes()):
        assert onnx(item).probabilities == pytest.approx(expected.probabilities, abs=1e-6)
    assert repr(onnx).startswith("Model(") and "10 classes" in repr(onnx)


def test_several_are_a_list_whatever_they_are(onnx, digits, paths):
    folder = digits.images / "test" / "three"
    inside = onnx(folder, top_k=2)
    assert [one.image for one in inside] == sorted(map(str, folder.glob("*.png")))
    assert len(inside[0].classes) == 2 and not inside.unreadable
    assert [one.image for one in onnx(f"{folder}/*.png")] == [one.image for one in inside]
    mixed = onnx([folder, Image.open(paths[0]), paths[1]], batch_size=7)
    assert [one.image for one in mixed[-2:]] == ["1", paths[1]] and len(mixed) == len(inside) + 2
    batch = np.stack([np.asarray(Image.open(path).convert("RGB")) for path in paths[:3]])
    assert [one.name for one in onnx(batch)] == [one.name for one in onnx(paths[:3])]
    for table in (np.array(paths[:3]), pytest.importorskip("pandas").Series(paths[:3], [7, 8, 9])):
        assert [one.image for one in onnx(table)] == paths[:3]


def gap(ours, theirs):
    return np.abs(np.subtract([one.probabilities for one in ours], [one.probabilities for one in theirs])).max()


def test_every_kind_of_model_says_what_must_predict_says(onnx, friday, paths):
    classifier = friday / "work/classifier.safetensors"
    bundle, zero_shot = must.load(friday / "work/model"), must.load(classifier)
    named = must.load(find_assets(), classes=list(CLASSES))
    for model, theirs in ((bundle, onnx), (named, zero_shot)):
        ours, other = model(paths), theirs(paths)
        assert [one.name for one in ours] == [one.name for one in other]
        assert gap(ours, other) < 1e-5
    assert gap(bundle(paths), zero_shot(paths)) > 0.01
    found = must.predict(model=classifier, images=paths).predictions
    assert [one.name for one in found] == [one.name for one in zero_shot(paths)]


def test_predictions_are_a_table_of_pandas(onnx, paths, monkeypatch):
    pandas = pytest.importorskip("pandas")
    found = onnx(paths[:3], top_k=2, abstain=0.0)
    columns = ["image", "class", "probability", "class_2", "probability_2", "abstained", "similarity"]
    rows = [[one.image, *itertools.chain(*one.top), False, one.similarity] for one in found]
    pandas.testing.assert_frame_equal(found.to_frame(), pandas.DataFrame(rows, columns=columns))
    assert onnx(paths[:3], abstain=1.0).to_frame()["class"].tolist() == ["none of these"] * 3
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(must.UserError, match=r"^to_frame needs the package pandas: pip install pandas$"):
        found.to_frame()


def test_a_broken_photo_costs_itself_alone(onnx, paths, tmp_path):
    cut = tmp_path / "cut.png"
    cut.write_bytes(Path(paths[0]).read_bytes()[:60])
    (tmp_path / "empty").mkdir()
    found = onnx([paths[0], cut, "nowhere.png", tmp_path / "empty", paths[1]], batch_size=2)
    assert [one.image for one in found] == paths[:2]
    assert found.unreadable.keys() == {str(cut), "nowhere.png", str(tmp_path / "empty")}
    assert found.unreadable["nowhere.png"] == "No such file or directory"
    for images, message in (
        (cut, r"cut\.png: "),
        (["nowhere.png", cut], r"nowhere\.png: No such file or directory"),
        ([np.zeros((4, 4, 3))], "image 0: an array of float64"),
    ):
        with pytest.raises(ValueError, match=message):
            onnx(images)


def test_a_transparent_picture_is_seen_on_white_in_memory_as_in_its_file(onnx, tmp_path):
    """What lies under the transparent pixels is anything: here, another digit's noise."""
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 4), dtype=np.uint8)
    pixels[8:24, 8:24, 3] = 0
    file = tmp_path / "sticker.png"
    Image.fromarray(pixels).save(file)
    expected = onnx(file)
    for item in (Image.open(file), pixels):
        assert onnx(item).probabilities == pytest.approx(expected.probabilities, abs=1e-6)


@pytest.mark.parametrize(
    "values, message",
    [
        ({"model": "openai/clip-vit-b", "classes": ["a", "b"]}, "a model on a hub is hf-hub:TEAM/NAME"),
        ({"model": find_assets(), "classes": "cat"}, "a file with a name a line, the names themselves"),
        ({"model": find_assets(), "classes": ["cat"]}, "needs at least two classes"),
    ],
)
def test_the_users_mistakes_are_one_line(values, message):
    with one_line(message):
        must.load(**values)
