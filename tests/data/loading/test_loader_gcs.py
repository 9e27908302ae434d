"""Training and evaluation straight from a bucket that fails now and then: the same as from a local folder."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from must.config import EvaluateConfig, TrainConfig
from must.evaluation.evaluate import evaluate
from must.method.train.trainer import train
from tests.data.loading.test_cache import FAULTS
from tests.data.shards.test_shard_gcs import upload
from tests.evaluation.digits import digits
from tests.stores import Server


@pytest.mark.slow
def test_training_and_evaluation_straight_from_a_bucket(bucket_server: Server, tmp_path: Path) -> None:
    data = digits()
    upload(Path(data.shards), bucket_server.uri)
    bucket_server.faults.plan = FAULTS
    weights, metrics = [], []
    for name, shards in (("local", data.shards), ("remote", bucket_server.uri)):
        cache = str(tmp_path / "cache")
        settings = {"epochs": 1, "batch_size": 25, "workers": 2, "cache": cache, "mask_patch_size": 8, "lr": 0.004}
        train(TrainConfig(shards=shards, classifier=data.classifier, output=str(tmp_path / name), **settings))
        weights.append(load_file(tmp_path / name / "model.safetensors"))
        report = str(tmp_path / f"{name}-report")
        evaluate(EvaluateConfig(model=str(tmp_path / name), shards=shards, output=report, cache=cache))
        metrics.append(json.loads((Path(report) / "metrics.json").read_text()))
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])
    assert metrics[0]["adapted"] == metrics[1]["adapted"]
    assert len(list((tmp_path / "cache").glob("*.tar"))) == len(list(Path(data.shards).glob("*.tar")))
    assert all(bucket_server.faults.done[fault] for fault in ("503", "429", "cut", "lost"))
