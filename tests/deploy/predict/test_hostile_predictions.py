"""Predictions of hostile file and class names: on the terminal, and as files."""

import csv
import io
import json
import shutil
import unicodedata

import pytest

from must.config import PredictConfig
from must.deploy.predict.images import predict_images
from must.deploy.predict.writer import Prediction, open_writer

ESCAPE = "\x1b]0;pwned\x07\x1b[2Jzero"
HOSTILE = Prediction("caf\udce9\x1b[2J.png", [f"a\r{ESCAPE}", "=1+1"], [0.6, 0.4])


def test_the_terminal_shows_no_raw_name(exported, digits, tmp_path, capsys):
    zero = next((digits.images / "test/zero").glob("*.png"))
    shutil.copy(zero, tmp_path / f"{ESCAPE}.png")
    (tmp_path / "cut\x1b[31m.png").write_bytes(zero.read_bytes()[:60])
    predict_images(PredictConfig(model=str(exported[1]), images=[str(tmp_path)]))
    with open_writer("") as write:
        write(HOSTILE)
    shown, warnings = capsys.readouterr()
    assert len(shown.splitlines()) == 2 and len(warnings.splitlines()) == 1
    for line in shown.splitlines() + warnings.splitlines():
        assert line.isprintable() and "?[" in line


@pytest.mark.parametrize("name", ["out.csv", "out.jsonl"])
def test_files_are_utf_8_and_no_cell_is_a_formula(tmp_path, name):
    with open_writer(str(tmp_path / name)) as write:
        write(HOSTILE)
        write(HOSTILE._replace(image="@here.png"))
    text = (tmp_path / name).read_bytes().decode()
    if name.endswith("jsonl"):
        assert json.loads(text.splitlines()[0])["image"] == HOSTILE.image
        return
    first, second = csv.DictReader(io.StringIO(text, newline=""))
    assert first["image"] == r"caf\udce9\x1b[2J.png" and second["image"] == "'@here.png"
    assert first["class"] == r"a%s\x1b]0;pwned\x07\x1b[2Jzero" % "\r" and "\n\r" not in text  # noqa: UP031
    assert not any(unicodedata.category(character) == "Cc" for character in text if character not in "\r\n")
    assert first["class_2"] == "'=1+1" and float(first["probability_2"]) == 0.4
