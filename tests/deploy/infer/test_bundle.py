"""`must predict` with a bundle: what the ONNX file says that is exported from it, row by row."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

import must
from must.api.cli import main
from must.base import storage
from must.config import PredictConfig
from must.deploy.infer.predict import predict
from must.evaluation.result import Model, write_metrics
from must.method.answers.estimate import Abstention
from must.method.model.bundle import load_bundle, save_bundle
from must.method.model.description import Selection
from tests.common import ended
from tests.data.shards.test_shard_gcs import upload
from tests.deploy.predict.test_predict_shards import preset_rows
from tests.evaluation.measured import MEASURED


def label(model, shards, output, **options):
    values = {"model": str(model), "shards": shards, "output": str(output), "workers": 1, "top_k": 2}
    return predict(PredictConfig(**values | options))


def test_a_folder_of_shards(digits, exported, tmp_path):
    """With two processes that decode beside torch."""
    label(exported[1], digits.shards, tmp_path / "onnx")
    label(digits.adapted, digits.shards, tmp_path / "torch", workers=2)
    for ours, theirs in zip(preset_rows(tmp_path / "torch"), preset_rows(tmp_path / "onnx"), strict=True):
        assert (ours["key"], ours["source"]) == (theirs["key"], theirs["source"])
        assert abs(ours["probability"] - theirs["probability"]) < 1e-5
        assert ours["class"] == theirs["class"] or theirs["margin"] < 1e-4
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "torch").glob("*.parquet")}
    assert label(digits.adapted, digits.shards, tmp_path / "torch") == {"images": 270, "unreadable": 0}
    assert {path: path.stat().st_mtime_ns for path in before} == before, "all files were there"
    with pytest.raises(ValueError, match=r"run\.json is of another run: its model_sha256"):
        label(digits.zero_shot, digits.shards, tmp_path / "torch")


def test_a_bundle_and_shards_in_a_bucket(digits, bucket_server, tmp_path):
    """A damaged file is named as the user named it."""
    for name in ("adapted", "shards"):
        upload(Path(getattr(digits, name)), f"{bucket_server.uri}/{name}")
    label(f"{bucket_server.uri}/adapted", f"{bucket_server.uri}/shards", tmp_path / "theirs", split="test")
    label(digits.adapted, digits.shards, tmp_path / "here", split="test")
    assert preset_rows(tmp_path / "theirs") == preset_rows(tmp_path / "here")
    storage.write_bytes(f"{bucket_server.uri}/adapted/model.safetensors", b"\xff" * 100)
    with pytest.raises(ValueError, match=f"^{bucket_server.uri}/adapted/model.safetensors: is damaged"):
        predict(PredictConfig(model=f"{bucket_server.uri}/adapted", images=["-"]))


def test_a_bundle_abstains_on_the_images_on_which_its_onnx_file_does(digits, tmp_path):
    """By labels in the report of WORK, or else by answers in the bundle, or else never."""
    work, images = tmp_path / "work", [str(digits.images / "test")]
    bundle = load_bundle(digits.adapted)
    by_answers, by_labels = (Abstention(0.05, by, t, 0.5, 0, 0.05) for by, t in (("answers", 0.6), ("labels", 0.9)))
    provenance = replace(bundle.description.provenance, selection=Selection(abstention=by_answers))
    written = save_bundle(str(work / "model"), bundle.model, replace(bundle.description, provenance=provenance))
    metrics = replace(MEASURED, model=Model(weights_sha256=written.weights_sha256), abstention=by_labels)
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
