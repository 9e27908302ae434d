import json
import shutil

import pytest

from must.answers.answers_file import append
from must.answers.population import record_population, shorten
from must.config import RefineConfig
from must.data.format import read_hashes
from must.data.reader import ShardReader
from must.evaluation.evaluate import evaluate
from must.evaluation.result import parse_metrics
from must.memory.refine import refine
from tests.evaluation.digits import evaluation


@pytest.fixture(scope="session")
def evaluated(digits, tmp_path_factory):
    """(metrics, output folder) of a whole run with labels and a baseline."""
    output = tmp_path_factory.mktemp("report")
    metrics = evaluate(evaluation(digits, output, batch_size=50))
    written = json.loads((output / "metrics.json").read_text())
    assert written == json.loads(json.dumps(metrics.to_dict())) and parse_metrics(written) == metrics
    return written, output


@pytest.fixture(scope="session")
def refined(digits, tmp_path_factory):
    """The folder of `must refine`, with 70 right answers; model/ beside it is the
    tuned model with its memory."""
    folder = tmp_path_factory.mktemp("refined")
    shutil.copytree(digits.adapted, folder / "model")
    reader = ShardReader(digits.shards, "train")
    pictures = [reader.description(number) for number in range(0, 140, 2)]
    lines = [{"sha256": one["sha256"], "label": one["label"], "sampled": "random"} for one in pictures]
    append(folder / "answers.jsonl", *lines)
    record_population(str(folder), read_hashes(digits.shards, reader.index, "train"), shorten([]))
    places = {"shards": digits.shards, "classifier": digits.classifier, "answers": str(folder)}
    places |= {"model": str(folder / "model"), "output": str(folder / "labels")}
    refine(RefineConfig(**places, workers=0, device="cpu"))
    return folder / "labels"
