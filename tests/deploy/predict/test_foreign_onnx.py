"""An ONNX file of anybody's making: what its metadata say of classes and pixels is compared with its network."""

import io
import json

import onnx
import pytest

from must.deploy.predict.session import OnnxClassifier


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
        ({"preprocess": {"std": [1, 1, 1e-300]}}, "mean or deviation out of range: expected are three numbers"),
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


def test_a_foreign_second_output_is_one_line(embedded):
    content = onnx.load(embedded / "model.onnx")
    content.graph.node.append(onnx.helper.make_node("Identity", ["embedding"], ["feature"]))
    content.graph.output[1].name = "feature"
    with pytest.raises(
        ValueError, match=r"^model.onnx: expected one input and one output, and at most 'similarity' and 'embedding'"
    ):
        OnnxClassifier(content.SerializeToString(), "model.onnx")
