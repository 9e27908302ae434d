"""Prediction without torch sees what evaluation sees."""

import io
import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import numpy as np
import onnx
import pytest

import must
from must.api.cli import main
from must.base.storage import UnreachableError
from must.config import PredictConfig
from must.evaluation.evaluate import evaluate
from must.prediction.onnx_model import ABSTENTION, Classified, OnnxClassifier, choose_threshold
from must.prediction.predict import classify, predict
from must.prediction.writer import Options
from tests.common import ended, one_line, read_csv, until
from tests.data.image.test_limits import thin
from tests.evaluation.digits import evaluation
from tests.serving.server import running
from tests.zoo import put


def test_every_image_gets_the_class_that_evaluate_gave_it(digits, exported, tmp_path):
    evaluate(evaluation(digits, tmp_path / "evaluated", baseline=""))
    expected = {row["source"]: row for row in read_csv(tmp_path / "evaluated" / "predictions.csv")}
    images, output = digits.images / "test", tmp_path / "found.csv"
    counts = predict(PredictConfig(model=str(exported[1]), images=[str(images)], output=str(output)))
    found = {str(row["image"]).removeprefix(f"{images}/"): row for row in read_csv(output)}
    assert counts == {"images": 120, "unreadable": 0} and found.keys() == expected.keys()
    for name, row in found.items():
        assert row["class"] == expected[name]["adapted"]
        assert float(row["probability"]) == pytest.approx(float(expected[name]["adapted_probability"]), abs=1e-3)
    accuracy = sum(row["class"] == name.split("/")[0] for name, row in found.items())
    assert accuracy == sum(row["label"] == row["adapted"] for row in expected.values())


def test_a_file_of_an_earlier_model_than_the_one_in_work_is_warned_about(digits, exported, tmp_path, capsys):
    """As after `must refine WORK`, which makes a new model."""
    put(tmp_path, {"work/onnx/model.onnx": (exported[1] / "model.onnx").read_bytes()})
    photo = str(next((digits.images / "test").rglob("*.png")))
    for bundle, warnings in ((digits.zero_shot, 1), (digits.adapted, 0)):
        put(tmp_path, {"work/model/model.json": Path(bundle, "model.json").read_bytes()})
        main(["predict", photo, "--model", f"{tmp_path}/work/onnx"])
        lines = capsys.readouterr().err.splitlines()
        expected = f"was exported from another model than {tmp_path}/work/model; run `must export` again"
        assert [line.partition("model.onnx: ")[2] for line in lines] == [expected] * warnings
    put(tmp_path, {"work/elsewhere/model.onnx": (exported[1] / "model.onnx").read_bytes()})
    put(tmp_path, {"work/model/model.json": Path(digits.zero_shot, "model.json").read_bytes()})
    main(["predict", photo, "--model", f"{tmp_path}/work/elsewhere"])
    assert "exported from another model" not in capsys.readouterr().err, "not of WORK"
    (tmp_path / "work/onnx/model.onnx").unlink()
    line = ended(capsys, 2, main, ["serve", f"{tmp_path}/work"])
    assert line.endswith(f"`must export {tmp_path}/work` makes it, or name it with --model")


def test_onnxruntime_does_not_report_its_use(exported, digits, tmp_path):
    """It would keep what it reports, with a number for the machine, in a database in the user's cache."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("ORT_")}
    environment |= {"HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path), "TMPDIR": str(tmp_path)}
    command = [sys.executable, "-m", "must", "predict", "--model", exported[1], digits.images / "test/zero"]
    subprocess.run(command, env=environment, check=True, capture_output=True)
    assert not list(tmp_path.iterdir())


def test_a_bad_image_is_one_line_and_stops_nothing(digits, exported, tmp_path, capsys):
    good = sorted((digits.images / "test").rglob("*.png"))[:3]
    put(tmp_path / "in", {f"deep/{number}.PNG": path.read_bytes() for number, path in enumerate(good)})
    bad = {"cut.png": good[0].read_bytes()[:60], "empty.jpg": b"", "thin.png": thin(60_000)}
    put(tmp_path / "in", bad | {"notes.txt": b"not looked at in a folder"})
    os.mkfifo(tmp_path / "pipe.png")
    model, output = str(exported[1] / "model.onnx"), tmp_path / "out.jsonl"
    images = [str(tmp_path / name) for name in ("in", "missing.png", "pipe.png")]
    counts = predict(PredictConfig(model=model, images=images, output=str(output), top_k=3))
    assert counts == {"images": 3, "unreadable": 5}
    *warnings, last = capsys.readouterr().err.splitlines()
    assert len(warnings) == 5 and any("cut.png" in line for line in warnings)
    assert any("pipe.png: a pipe, socket or device, no file" in line for line in warnings)
    assert any("1x60000 is thinner than 1 to 200" in line for line in warnings)
    assert last == "other files, not read: 1 .txt"
    lines = [json.loads(line) for line in output.read_text().splitlines()]
    for line in lines:
        probabilities = [line[name] for name in ("probability", "probability_2", "probability_3")]
        assert probabilities == sorted(probabilities, reverse=True) and sum(probabilities) <= 1.001


@pytest.mark.parametrize("constant, message", [(np.nan, "are no finite numbers"), (None, "a forward pass fails")])
def test_a_model_whose_answers_are_nothing_is_one_line(exported, tmp_path, constant, message):
    """Numbers that are none; a shape that one image does not have."""
    model = onnx.load(exported[1] / "model.onnx")
    name, last = model.graph.output[0].name, model.graph.node[-1]
    assert name in last.output
    last.output[:] = ["before" if output == name else output for output in last.output]
    if constant is None:
        classes = model.graph.output[0].type.tensor_type.shape.dim[1].dim_value
        kind, value = "Reshape", np.array([7, classes], np.int64)
    else:
        kind, value = "Mul", np.array(constant, np.float32)
    model.graph.initializer.append(onnx.numpy_helper.from_array(value, "value"))
    model.graph.node.append(onnx.helper.make_node(kind, ["before", "value"], [name]))
    onnx.save(model, tmp_path / "model.onnx")
    with one_line(message):
        OnnxClassifier(tmp_path / "model.onnx")(np.zeros((1, 32, 32, 3), np.uint8))


def test_nothing_readable_is_the_users_error_and_leaves_no_file(exported, tmp_path):
    for name in ("bad.png", "photos.tar"):
        (tmp_path / name).write_bytes(b"no image")
    output = tmp_path / "out.csv"
    for name in ("photos.tar", "nowhere/*.png", "none.png"):
        images = [str(tmp_path / "bad.png"), str(tmp_path / name)]
        config = PredictConfig(model=str(exported[1]), images=images, output=str(output))
        message = "photos.tar: the archive is damaged" if "tar" in name else "none of the images could be read"
        with pytest.raises(ValueError, match=message):
            predict(config)
    assert not output.exists() and not list(tmp_path.glob(".tmp*"))


def test_a_folder_is_seen_as_must_shard_sees_it(digits, exported, tmp_path, capsys):
    """Names without an ending, links, files that a Mac leaves behind: the same images, and the same words."""
    first, second = sorted((digits.images / "test").rglob("*.png"))[:2]
    folder = tmp_path / "in"
    put(folder, dict.fromkeys(("deep/IMG_1", "._IMG_1.png"), first.read_bytes()) | {"notes.txt": b"x"})
    (folder / "link.png").symlink_to(second)
    (folder / "gone.png").symlink_to("nowhere")
    found = must.load(exported[1])(folder)
    assert [one.image for one in found] == [f"{folder}/deep/IMG_1", f"{folder}/link.png"]
    assert found.unreadable == {f"{folder}/gone.png": "symbolic link to nowhere"}
    assert found.skipped == {"hidden": 1, ".txt": 1}
    assert must.shard(source=folder, output=tmp_path / "shards", max_rejected=1).splits == {"train": len(found)}
    capsys.readouterr()
    predict(PredictConfig(model=str(exported[1]), images=[str(folder)]))
    said = capsys.readouterr().err.splitlines()
    assert said == [f"{folder}/gone.png: symbolic link to nowhere", "other files, not read: 1 .txt, 1 hidden"]


def test_globs_and_names_or_a_picture_on_standard_input(digits, exported, monkeypatch, capsys):
    def given(data):
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BufferedReader(io.BytesIO(data))))
        main(["predict", "--model", str(exported[1]), "-"])
        return capsys.readouterr().out.splitlines()

    paths = sorted((digits.images / "test/zero").glob("*.png"))[:2]
    named = given("".join(f"{path}\n" for path in paths).encode())
    assert [line.split("  ")[0] for line in named] == [str(path) for path in paths]
    found = must.predict(model=exported[1], images=[str(digits.images / "test" / "z*" / "*.png")])
    assert found.images == len(list((digits.images / "test/zero").iterdir()))
    assert given(paths[0].read_bytes()) == [named[0].replace(str(paths[0]), "-")] and "%" in named[0]
    with pytest.raises(SystemExit, match="2"):
        given(b"")
    assert "-: standard input holds neither names nor a picture" in capsys.readouterr().err


def test_a_bucket_that_does_not_answer_is_no_fault_of_its_images(digits, exported, tmp_path, monkeypatch):
    """Else a table without most of the images would look complete."""
    unreachable = Mock(side_effect=UnreachableError("the server could not be reached"))
    monkeypatch.setattr("must.prediction.predict.storage.read_bytes", unreachable)
    images, output = [str(digits.images / "test/zero")], tmp_path / "out.csv"
    with pytest.raises(UnreachableError):
        predict(PredictConfig(model=str(exported[1]), images=images, output=str(output)))
    assert not output.exists()
    with pytest.raises(UnreachableError):
        must.load(exported[1])(images)


class Sevens:
    """A classifier of two classes that gives every image the second."""

    where, classes, metadata = "", ["six", "seven"], dict[str, str]()

    def __call__(self, pixels):
        return Classified(np.tile(np.float32([0, 1]), (len(pixels), 1)), np.ones(len(pixels), np.float32))


@pytest.mark.parametrize("ahead", [True, False])
def test_the_next_batch_is_read_meanwhile_but_not_that_of_a_stream(ahead):
    taken = []
    names = ((taken.append(n), (n, n))[1] for n in "abcdef")
    read = lambda _: (np.zeros((2, 2, 3), np.uint8), "")  # noqa: E731
    predicted = classify(Sevens(), names, read, Options(1, 0.0, 2), read_ahead=ahead)
    assert next(predicted).name == "seven" and taken == [*"abcd"][: 4 if ahead else 2]
    assert [one.image for one in predicted] == [*"bcdef"] and taken == [*"abcdef"]


def test_after_an_error_no_other_image_is_read(monkeypatch):
    """Nor are those waited for whose reading has begun."""
    begun, raised, before = [], threading.Event(), {*threading.enumerate()}

    def read(number):
        begun.append(number)
        if number == 0:
            raise UnreachableError("gone")
        raised.wait()
        return None, "late"

    monkeypatch.setattr("must.prediction.predict.READERS", 3)
    with pytest.raises(UnreachableError):
        list(classify(Sevens(), ((str(n), n) for n in range(400)), read, Options(1, 0.0, 200)))
    raised.set()
    until(lambda: {*threading.enumerate()} <= before)
    assert len(begun) <= 1 + 3, "the one that failed, and one in each thread"


def test_wrong_parameters_are_one_line(exported, tmp_path):
    ours = {"model": str(exported[1]), "images": ["-"], "output": str(tmp_path / "out.csv")}
    (tmp_path / "foreign.onnx").write_bytes(b"no model")
    for changes, message in (
        ({"abstain": 1.5}, "--abstain must be from 0 to 1"),
        ({"abstain": -0.5}, "or -1, for the threshold in the model"),
        ({"images": []}, "no image given"),
        ({"top_k": 0}, "at least 1"),
        ({"output": str(tmp_path / "out.txt")}, "the name must end in .csv, .jsonl or .parquet"),
        ({"images": [f"{tmp_path}/no.tar"]}, "no.tar: no such file"),
        ({"model": str(tmp_path / "foreign.onnx")}, "onnxruntime cannot read it"),
    ):
        with one_line(message):
            predict(PredictConfig(**ours | changes))
    assert not (tmp_path / "out.csv").exists()


@pytest.mark.slow
def test_abstaining_is_said_everywhere(exported, digits, tmp_path, capsys):
    model, images = onnx.load(exported[1] / "model.onnx"), [str(digits.images / "test")]
    model.metadata_props.add(key=ABSTENTION, value=json.dumps({"threshold": 0.8, "by": "labels"}))
    onnx.save(model, calibrated := f"{tmp_path}/model.onnx")
    plain = must.predict(model=calibrated, images=images).predictions
    unsure = [found.probability < 0.8 for found in plain]
    assert 0 < sum(unsure) < len(unsure) and not any(row.abstained for row in plain)
    names = [None if found.probability < 0.8 else found.top[0][0] for found in plain]
    given = must.predict(model=calibrated, images=images, abstain=0.8).predictions
    for found in (given, must.load(calibrated)(images, abstain=-1)):
        assert [row.abstained for row in found] == unsure and [row.name for row in found] == names
    capsys.readouterr()
    main(["predict", "--model", calibrated, "--abstain", "-1", *images])
    assert ["none of these: " in line for line in capsys.readouterr().out.splitlines()] == unsure
    must.predict(model=calibrated, images=images, top_k=2, abstain=-1, output=str(tmp_path / "p.csv"))
    assert f"{len(unsure)} images, {sum(unsure)} without a class -> " in capsys.readouterr().out
    rows = read_csv(tmp_path / "p.csv")
    assert [row["abstained"] == "1" for row in rows] == unsure
    words = [(row["class"], row["class_2"]) == ("none of these", "") for row in rows]
    assert words == unsure
    must.predict(model=calibrated, images=images, top_k=2, abstain=-1, output=str(tmp_path / "p.jsonl"))
    lines = [json.loads(line) for line in (tmp_path / "p.jsonl").read_text().splitlines()]
    assert [line["class"] for line in lines] == [name or "none of these" for name in names]
    with running("--model", calibrated, "--top-k", 2, "--abstain", -1) as server:
        for line in lines[:20]:
            served = server.ask("POST", "/classify", Path(line["image"]).read_bytes())[1]
            assert (served["class"] or "none of these", served["abstained"]) == (line["class"], line["abstained"])
            found = [row["probability"] for row in served["predictions"]]
            assert found == [round(line[name], 6) for name in ("probability", "probability_2")]
    with running("--model", calibrated) as server:
        picture = Path(lines[unsure.index(True)]["image"]).read_bytes()
        for query, abstained in (("", False), ("?abstain=-1", True)):
            assert server.ask("POST", f"/classify{query}", picture)[1]["abstained"] is abstained


@pytest.mark.parametrize("value", ['"0.5"', "2", "true", "NaN", "1}", ""])
def test_a_damaged_threshold(value):
    with pytest.raises(ValueError, match="is damaged"):
        choose_threshold(-1, SimpleNamespace(metadata={ABSTENTION: f'{{"threshold": {value}}}'}), "model.onnx")
