"""An ONNX file of anybody's making: what its metadata say of classes and pixels is compared with its network."""

import io
import json
import os

import onnx
import pytest

from must.config import PredictConfig
from must.deploy.predict.images import predict_images
from must.deploy.predict.session import OnnxClassifier
from tests.data.image.test_cost import thin


def edited(model, **metadata):
    content = onnx.load(model)
    for item in content.metadata_props:
        if item.key in metadata:
            value = metadata[item.key]
            item.value = value if isinstance(value, str) else json.dumps(value)
    buffer = io.BytesIO()
    onnx.save(content, buffer)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"classes": ["a", "b"]}, r"gives \[10\] probabilities, its metadata name 2 classes"),
        ({"classes": [str(n) for n in range(11)]}, r"gives \[10\] probabilities, its metadata name 11 classes"),
        ({"classes": [1] * 10}, "name no classes"),
        ({"classes": []}, "name no classes"),
        ({"classes": "[" * 100_000}, "metadata are damaged"),
        ({"preprocess": {"size": 30000}}, "size '30000': only squares of 1 to"),
        ({"preprocess": {"size": 64}}, "its metadata say 64 pixels"),
        ({"preprocess": {"size": True}}, "size 'True': only squares"),
        ({"preprocess": {"size": [1]}}, "size a list of 1: only squares"),
        ({"preprocess": []}, "no mapping"),
        ({"preprocess": {"mean": [1]}}, "three numbers"),
        ({"preprocess": {"std": [1, 2, float("nan")]}}, "out of range"),
        ({"preprocess": {"std": [0, 0, 0]}}, "mean or deviation out of range: expected are three numbers"),
        ({"preprocess": {"std": [1, 1, 1e-300]}}, "out of range"),
        ({"preprocess": {"mean": [1e300, 0, 0]}}, "out of range"),
        ({"preprocess": {"mean": [10**400, 0, 0]}}, "out of range"),
        ({"preprocess": {"interpolation": ["x"]}}, "not supported"),
        ({"preprocess": "not json"}, "metadata are damaged"),
    ],
)
def test_metadata_that_do_not_fit_are_one_line(exported, metadata, message):
    with pytest.raises(ValueError, match=f"^model.onnx: .*{message}") as error:
        OnnxClassifier(edited(exported[1] / "model.onnx", **metadata), "model.onnx")
    assert "\n" not in str(error.value) and len(str(error.value)) < 500


def test_metadata_that_are_no_text_are_one_line(exported):
    damaged = bytearray((exported[1] / "model.onnx").read_bytes())
    damaged[damaged.rfind(b"interpolation") + 1] ^= 0x80
    with pytest.raises(ValueError, match=r"^model.onnx: is damaged: its metadata is no text in UTF-8"):
        OnnxClassifier(bytes(damaged), "model.onnx")


def test_what_is_no_image_stops_no_other(digits, exported, tmp_path, capsys):
    """A pipe that nobody writes to, an image one pixel wide, and a whole one."""
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "thin.png").write_bytes(thin(60_000))
    good = next((digits.images / "test").rglob("*.png"))
    names = [str(tmp_path / "pipe.png"), str(tmp_path / "thin.png"), str(good)]
    counts = predict_images(PredictConfig(model=str(exported[1]), images=names))
    assert counts == {"images": 1, "unreadable": 2}
    told = capsys.readouterr().err
    assert "pipe.png: a pipe, socket or device, no file" in told and "1x60000 is thinner than 1 to 200" in told
