"""`must predict` with a bundle: what the ONNX file says that is exported from it, row by row."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

import must
from must.answers.abstention import Abstention
from must.api.cli import main
from must.base import storage
from must.config import PredictConfig
from must.evaluation.result import ModelRecord, write_metrics
from must.model.bundle import load_bundle, save_bundle
from must.model.description import Selection
from must.prediction.predict import predict
from tests.common import ended, read_csv
from tests.data.shards.test_shard_gcs import upload
from tests.evaluation.measured import MEASURED


def label(model, images, output):
    """Numbers of images; each image's row of the CSV file."""
    counts = predict(PredictConfig(model=str(model), images=[str(images)], output=str(output), top_k=2))
    with storage.local_copy(output) as path:
        return counts, {row.pop("image").removeprefix(f"{images}/"): row for row in read_csv(path)}


def test_rows_are_those_of_its_onnx_file(digits, exported, tmp_path):
    counts, rows = label(digits.adapted, digits.images, tmp_path / "torch.csv")
    assert counts == {"images": len(rows), "unreadable": 0} and len(rows) > 120
    others = label(exported[1], digits.images, tmp_path / "onnx.csv")[1]
    assert rows.keys() == others.keys()
    for name, ours in rows.items():
        first, second = (float(others[name][column]) for column in ("probability", "probability_2"))
        assert abs(float(ours["probability"]) - first) < 1e-5
        assert ours["class"] == others[name]["class"] or first - second < 1e-4


def test_bundle_images_and_table_in_a_bucket_that_fails_now_and_then(digits, bucket_server, tmp_path):
    """A damaged file is named as the user named it."""
    upload(Path(digits.adapted), f"{bucket_server.uri}/adapted")
    upload(digits.images / "test", f"{bucket_server.uri}/test")
    bucket_server.faults.plan = ["", "503", "", "cut", "", "", "429", "slow", "lost"]
    places = (f"{bucket_server.uri}/{name}" for name in ("adapted", "test", "found.csv"))
    found = label(*places)
    bucket_server.faults.plan = []
    assert bucket_server.faults.done["503"] and bucket_server.faults.done["cut"]
    assert found == label(digits.adapted, digits.images / "test", tmp_path / "here.csv")
    storage.write_bytes(f"{bucket_server.uri}/adapted/model.safetensors", b"\xff" * 100)
    with pytest.raises(ValueError, match=f"^{bucket_server.uri}/adapted/model.safetensors: is damaged"):
        predict(PredictConfig(model=f"{bucket_server.uri}/adapted", images=["-"]))


@pytest.mark.slow
def test_a_bundle_abstains_on_the_images_on_which_its_onnx_file_does(digits, tmp_path):
    """By labels in the report of WORK, or else by answers in the bundle, or else never."""
    work, images = tmp_path / "work", [str(digits.images / "test")]
    bundle = load_bundle(digits.adapted)
    by_answers, by_labels = (Abstention(0.05, by, t, 0.5, 0, 0.05) for by, t in (("answers", 0.6), ("labels", 0.9)))
    provenance = replace(bundle.description.provenance, selection=Selection(abstention=by_answers))
    written = save_bundle(str(work / "model"), bundle.model, replace(bundle.description, provenance=provenance))
    metrics = replace(MEASURED, model=ModelRecord(weights_sha256=written.weights_sha256), abstention=by_labels)
    write_metrics(str(work / "report/metrics.json"), metrics)
    must.export(model=work, output=work / "onnx")
    kinds = ("onnx", "", "model")
    sure = {kind: [found.name for found in must.load(work / kind)(images, abstain=-1)] for kind in kinds}
    (work / "report").rename(tmp_path / "report")
    plain, some = must.load(digits.adapted)(images, abstain=-1), must.load(work)(images, abstain=-1)
    for threshold, names in ((0.9, sure["onnx"]), (0.9, sure[""]), (0.9, sure["model"]), (0.6, [p.name for p in some])):
        assert names == [p.name if p.probability >= threshold else None for p in plain]
    assert None not in [p.name for p in plain] and 0 < sum(p.abstained for p in some) < sure["onnx"].count(None)


def test_wrong_input_is_one_line(digits, exported, tmp_path, capsys):
    bundle = load_bundle(digits.adapted)
    bundle.model.classifier.data.fill_(float("nan"))
    save_bundle(str(tmp_path / "nan"), bundle.model, bundle.description)
    shutil.copytree(digits.adapted, tmp_path / "bundle")
    (tmp_path / "bundle/model.safetensors").write_bytes(b"\xff" * 100)
    shutil.copytree(digits.adapted, tmp_path / "half")
    (tmp_path / "half/model.safetensors").unlink()
    image = str(next((digits.images / "test").rglob("*.png")))
    for arguments, message in [
        (["--model", str(tmp_path / "bundle"), image], "is damaged"),
        (["--model", str(tmp_path / "half"), image], "model.safetensors"),
        (["--model", str(tmp_path / "nan"), image], "its probabilities are no finite numbers"),
        (["--model", digits.adapted, "--device", "cuda:99", image], "--device cuda:99: no such device here"),
        (["--model", str(exported[1]), "--device", "cpu", image], "--device is for a model that torch runs"),
        (["--model", str(tmp_path), image], "holds no model"),
    ]:
        line = ended(capsys, 2, main, ["predict", *arguments])
        assert line.startswith("must predict: ") and message in line, line
