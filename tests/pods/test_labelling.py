"""The pipeline must-label: its first stage refuses what each part would refuse, and hands on the model's address."""

import re
import shutil

import pytest
from PIL import Image

from must.base.program import find_exit_code
from must.base.storage import UnreachableError
from must.config import PredictConfig
from must.pods.labelling import label, model
from must.pods.notes import Facts
from must.prediction.predict import predict
from tests.common import one_line
from tests.registry.bundles import make_bundle, make_onnx, promote


@pytest.fixture
def given(tmp_path):
    (tmp_path / "images").mkdir()
    for number in range(6):
        Image.new("RGB", (9, 9), (40 * number, 0, 0)).save(tmp_path / f"images/{number}.png")
    make_onnx(tmp_path / "onnx" / "model.onnx")
    (tmp_path / "onnx" / "labels.txt").write_text("red\ngreen\nblue\n")
    return {"source": str(tmp_path / "images"), "output": str(tmp_path / "labels.csv")}


def choose(tmp_path, given, parts=2, **more):
    values = {"model": str(tmp_path / "onnx"), "parts": parts, **given, **more}
    return model(Facts(), str(tmp_path / "work"), kind="onnx", **values)


@pytest.mark.parametrize("change, message", [
    ({"source": "{folder}/onnx"}, "source {folder}/onnx: no images in there"),
    ({"source": "{folder}/nowhere"}, "{folder}/nowhere: no such file"),
    ({"output": "{folder}/labels.parquet"}, "labels.parquet: must be a .csv or .jsonl file in a pipeline"),
    ({"output": "{folder}/onnx/model.onnx/labels.csv"}, "model.onnx/labels.csv.parts: cannot be read and written"),
    ({"parts": 3}, "has parts of 2; go on with these, or take another --output"),
    ({"settings": {"top-kk": 2}}, "settings.top_kk: unknown; did you mean"),
    ({"model": ""}, "registry/model: has no champion yet"),
    ({"model": "{folder}/nowhere"}, "model {folder}/nowhere: is not there"),
])  # fmt: skip
def test_the_first_stage_refuses_what_each_part_would(tmp_path, given, change, message):
    (tmp_path / "labels.csv.parts").mkdir()
    (tmp_path / "labels.csv.parts" / "part-00001-of-00002.csv").write_text("image\n")
    change = {k: v.replace("{folder}", str(tmp_path)) if isinstance(v, str) else v for k, v in change.items()}
    assert choose(tmp_path, given) == {"address": str(tmp_path / "onnx")}
    with one_line(re.escape(message.replace("{folder}", str(tmp_path)))):
        choose(tmp_path, given, **change)


def test_a_champion_without_an_onnx_file_is_refused_before_the_parts(tmp_path, given):
    promote(tmp_path / "work" / "registry", "--model", make_bundle(tmp_path / "bundle"), name="model")
    with one_line("/onnx: is not there"):
        choose(tmp_path, given, model="")


def test_parts_take_the_model_that_was_chosen_and_nothing_is_labelled_twice(tmp_path, given):
    choose(tmp_path, given)
    shutil.rmtree(tmp_path / "work" / "notes" / "run" / "model.json", ignore_errors=True)  # a note is only for people
    said = []
    for _ in range(2):
        for part in ("1/2", "2/2"):
            label(facts := Facts(), str(tmp_path / "work"), part=part, only_new=True, **given)
            said.append(facts.rows)
    assert said[0]["images"] + said[1]["images"] == 6 == said[0]["new"] + said[1]["new"]
    assert not said[2]["new"] and facts.result.startswith("Nothing new: ")
    joined = PredictConfig(model=str(tmp_path / "onnx"), images=[given["source"]], output=given["output"])
    assert predict(joined)["images"] == 6
    choose(tmp_path, given)  # beside the joined table


def test_a_silent_store_is_no_wrong_input(tmp_path, given, monkeypatch):
    def silent(uri, *_):
        raise UnreachableError(f"{uri}: the server could not be reached for 300 s")

    with pytest.raises(ValueError, match=r"model.txt: is missing; the stage model writes it"):
        label(Facts(), str(tmp_path / "work"), part="1/2", **given)
    monkeypatch.setattr("must.pods.labelling.storage.read_bytes", silent)
    with pytest.raises(UnreachableError) as error:
        label(Facts(), str(tmp_path / "work"), part="1/2", **given)
    assert find_exit_code(error.value) == 75
