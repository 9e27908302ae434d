"""ONNX files of anybody's making, whose metadata are compared with the network; hostile names of files and classes."""

import csv
import io
import json
import shutil
import unicodedata

import onnx
import pytest

from must.config import PredictConfig
from must.prediction.onnx_model import OnnxClassifier
from must.prediction.predict import predict
from must.prediction.writer import Prediction, list_columns, make_row, open_table, print_row
from tests.common import one_line


def edited(path, model, **metadata):
    """Writes the model with other metadata to `path`."""
    content = onnx.load(model)
    for item in content.metadata_props:
        if item.key in metadata:
            value = metadata[item.key]
            item.value = value if isinstance(value, str) else json.dumps(value)
    onnx.save(content, path)
    return path


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
def test_metadata_that_do_not_fit_are_one_line(exported, tmp_path, metadata, message):
    with one_line(f"^model.onnx: .*{message}") as error:
        OnnxClassifier(edited(tmp_path / "x", exported[1] / "model.onnx", **metadata), "model.onnx")
    assert len(str(error.value)) < 500


def test_metadata_that_are_no_text_are_one_line(exported, tmp_path):
    damaged = bytearray((exported[1] / "model.onnx").read_bytes())
    damaged[damaged.rfind(b"interpolation") + 1] ^= 0x80
    (tmp_path / "x").write_bytes(damaged)
    with pytest.raises(ValueError, match=r"^model.onnx: is damaged: its metadata is no text in UTF-8"):
        OnnxClassifier(tmp_path / "x", "model.onnx")


def test_a_foreign_second_output_is_one_line(embedded, tmp_path):
    content = onnx.load(embedded / "model.onnx")
    content.graph.node.append(onnx.helper.make_node("Identity", ["embedding"], ["feature"]))
    content.graph.output[1].name = "feature"
    onnx.save(content, tmp_path / "x")
    message = "^model.onnx: expected one input and one output, and at most 'similarity' and 'embedding'"
    with pytest.raises(ValueError, match=message):
        OnnxClassifier(tmp_path / "x", "model.onnx")


ESCAPE = "\x1b]0;pwned\x07\x1b[2Jzero"
HOSTILE = Prediction("caf\udce9\x1b[2J.png", [f"a\r{ESCAPE}", "=1+1"], [0.6, 0.4])


def test_the_terminal_shows_no_raw_name(exported, digits, tmp_path, capsys):
    zero = next((digits.images / "test/zero").glob("*.png"))
    shutil.copy(zero, tmp_path / f"{ESCAPE}.png")
    (tmp_path / "cut\x1b[31m.png").write_bytes(zero.read_bytes()[:60])
    predict(PredictConfig(model=str(exported[1]), images=[str(tmp_path)]))
    print_row(HOSTILE)
    shown, warnings = capsys.readouterr()
    assert len(shown.splitlines()) == 2 and len(warnings.splitlines()) == 1
    for line in shown.splitlines() + warnings.splitlines():
        assert line.isprintable() and "?[" in line


@pytest.mark.parametrize("name", ["out.csv", "out.jsonl"])
def test_files_are_utf_8_and_no_cell_is_a_formula(tmp_path, name):
    with open_table(str(tmp_path / name), list_columns(2)) as write:
        write(make_row(HOSTILE))
        write(make_row(HOSTILE._replace(image="@here.png")))
    text = (tmp_path / name).read_bytes().decode()
    if name.endswith("jsonl"):
        assert json.loads(text.splitlines()[0])["image"] == HOSTILE.image
        return
    first, second = csv.DictReader(io.StringIO(text, newline=""))
    assert first["image"] == r"caf\udce9\x1b[2J.png" and second["image"] == "'@here.png"
    assert first["class"] == r"a%s\x1b]0;pwned\x07\x1b[2Jzero" % "\r" and "\n\r" not in text  # noqa: UP031
    assert not any(unicodedata.category(character) == "Cc" for character in text if character not in "\r\n")
    assert first["class_2"] == "'=1+1" and float(first["probability_2"]) == 0.4
