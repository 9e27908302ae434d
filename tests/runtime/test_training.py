"""The stage train: people's answers reach the model and the labels."""

import hashlib
import json
import shutil

from must.method.answers.answers_file import append
from must.runtime.training import teach
from tests.common import read_csv


def test_answers_reach_the_trained_model_and_the_labels(digits, tmp_path):
    bundle = shutil.copytree(digits.adapted, tmp_path / "bundle")
    pictures = sorted(digits.images.glob("train/*/*.png"))[::6]
    answers = tmp_path / "answers.jsonl"  # the pipeline's parameter names the file
    for path in pictures:
        sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
        append(answers, {"image": path.name, "sha256": sha256, "label": path.parent.name, "sampled": "coverage"})
    job = {"shards": digits.shards, "index_sha256": "", "classifier": digits.classifier, "epochs": 3, "features": ""}
    before = json.loads((bundle / "model.json").read_text())
    teach(job, str(bundle), str(answers), str(tmp_path / "labels"))
    refined = json.loads((tmp_path / "labels" / "refined.json").read_bytes())
    after = json.loads((bundle / "model.json").read_text())
    assert refined["answers"] == len(pictures) == after["provenance"]["memory"]["answers"]
    assert after["weights_sha256"] == refined["weights_sha256"] != before["weights_sha256"]
    assert after["provenance"]["index_sha256"] == before["provenance"]["index_sha256"], "of the training"
    rows = read_csv(tmp_path / "labels" / "predictions.csv")
    labels = {row["image"].rpartition("/")[2]: row["class"] for row in rows}
    assert all(labels[path.name] == path.parent.name for path in pictures)
