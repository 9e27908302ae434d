"""The stage train: people's answers reach the model and the labels."""

import hashlib
import json
import shutil

from must.answers.answers_file import append
from must.answers.population import record_population, shorten
from must.data.format import load_index, read_hashes
from must.pods.notes import Facts, Note, write_note
from must.pods.summary import summarize
from must.pods.training import report_labels, teach
from tests.common import read_csv


def test_answers_reach_the_trained_model_and_the_labels(digits, tmp_path):
    bundle = shutil.copytree(digits.adapted, tmp_path / "bundle")
    pictures = sorted(digits.images.glob("train/*/*.png"))[::6]
    answers = tmp_path / "answers.jsonl"  # the pipeline's parameter names the file
    for path in pictures:
        sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
        append(answers, {"image": path.name, "sha256": sha256, "label": path.parent.name, "sampled": "random"})
    record_population(str(tmp_path), read_hashes(digits.shards, load_index(digits.shards), "train"), shorten([]))
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
    report_labels(facts := Facts(), str(tmp_path / "labels"))
    write_note(str(tmp_path), "7", Note("train", "done", facts=facts))
    counts = refined["accepted"]
    assert f"150 pictures: {len(pictures)} answered, " in facts.labels and f"{counts['left']} are left" in facts.labels
    assert counts["left"] == 150 - len(pictures) - counts["accepted"] > 0
    assert f"- **Labels**: {facts.labels}" in summarize(str(tmp_path), "7", "again").to_markdown()
