"""Runs `must refine` on the bundled digits, and answers as a person would."""

import csv
import io
import json
import shutil

import numpy as np

from must.answers.answers_file import append
from must.answers.population import record_population, shorten
from must.config import RefineConfig
from must.data.format import load_index, read_hashes
from must.memory.refine import refine
from must.model.description import load_description
from tests.evaluation.digits import digits as digits_once
from tests.training import lives


def flags(digits, folder):
    places = {"shards": digits.shards, "classifier": digits.classifier}
    return places | {"model": str(folder / "model"), "output": str(folder / "labels")}


def run(digits, folder, **changes):
    """(refined.json, rows of predictions.csv) of the model in the folder."""
    summary = refine(RefineConfig(**{**flags(digits, folder), "workers": 0, "device": "cpu", **changes}))
    assert json.loads((folder / "labels/refined.json").read_text()) == summary
    return summary, list(csv.DictReader(io.StringIO((folder / "labels/predictions.csv").read_text())))


def trained(digits, folder):
    """A folder with a copy of the tuned model."""
    shutil.copytree(digits.adapted, folder / "model")
    return folder


def weights(folder):
    """Those that classify."""
    return lives.weights(folder, "visual.", "classifier")


def selection(folder):
    return load_description(str(folder / "model")).provenance.selection


def accuracy(rows, truth, column):
    return np.mean([row[column] == truth[row["image"]] for row in rows])


def answered(folder, pictures, say=lambda label: label, sampled="random", shards=""):
    folder.mkdir(exist_ok=True)
    shards = shards or digits_once().shards
    record_population(str(folder), read_hashes(shards, load_index(shards), "train"), shorten([]))
    lines = answer_lines((name, sha256, say(own)) for name, sha256, own in pictures)
    gone = {"image": "gone", "sha256": "0" * 64, "label": "one"}
    append(folder / "answers.jsonl", *(line | {"sampled": sampled, "who": "ann"} for line in (*lines, gone)))
    return str(folder)


def answer_lines(pictures):
    return [{"image": n, "sha256": sha256, "label": label, "sampled": "random"} for n, sha256, label in pictures]
