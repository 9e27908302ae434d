"""Training and evaluation straight from a bucket that fails now and then: the same as from a local folder."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from must.config import EvaluateConfig, TrainConfig
from must.data.augment.views import TrainViews
from must.data.loading.loader import TrainDataset, train_batches
from must.data.loading.order import GlobalBatches
from must.data.loading.reader import open_reader
from must.evaluation.evaluate import evaluate
from must.method.train.trainer import train
from tests.data.augment.test_views import SETTINGS
from tests.data.loading.test_cache import FAULTS
from tests.data.shards.test_shard import sharded
from tests.data.shards.test_shard_gcs import upload
from tests.evaluation.digits import digits
from tests.stores import Server


def batches(uri: str, cache: Path, workers: int, cache_gb: float = 1.0) -> list[list[torch.Tensor]]:
    reader = open_reader(uri, "train", str(cache), cache_gb, window=2)
    dataset = TrainDataset(reader, TrainViews(SETTINGS), seed=3)
    order = GlobalBatches(reader.sizes, 8, 2, 3, window=2, first_step=1)
    return [list(batch) for batch in train_batches(dataset, order, workers)]


@pytest.mark.slow
def test_batches_from_a_failing_bucket_are_those_of_a_folder(bucket_server: Server, tmp_path: Path) -> None:
    """With a cache of all shards, and with one of a few that must be cleared again and again."""
    index = sharded(tmp_path, 60, samples_per_shard=6)
    upload(tmp_path / "out", bucket_server.uri)
    expected = batches(str(tmp_path / "out"), tmp_path / "unused", 0)
    bucket_server.faults.plan = FAULTS
    few = 5 * max(shard.bytes for shard in index.shards) / 1e9
    for name, workers, size in (("all", 2, 1.0), ("few", 2, few), ("alone", 0, few)):
        found = batches(bucket_server.uri, tmp_path / name, workers, size)
        assert len(found) == len(expected) == 13
        for ours, theirs in zip(found, expected, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
        assert sum(path.stat().st_size for path in (tmp_path / name).glob("*.tar")) <= size * 1e9
    assert len(list((tmp_path / "all").glob("*.tar"))) == 10
    assert not (tmp_path / "unused").exists()
    assert all(bucket_server.faults.done[fault] for fault in ("503", "429", "cut", "lost", "slow"))


def test_going_on_reads_only_what_is_still_to_come(bucket_server: Server, tmp_path: Path) -> None:
    """At the last of 15 steps, with windows of 2 of 10 shards: neither images nor shards of the steps before."""
    sharded(tmp_path, 60, samples_per_shard=6)
    upload(tmp_path / "out", bucket_server.uri)
    reader = open_reader(bucket_server.uri, "train", str(tmp_path / "cache"), 1, window=2)
    order = GlobalBatches(reader.sizes, 4, 1, 0, window=2, first_step=14)
    bucket_server.faults.requests = 0
    (batch,) = train_batches(TrainDataset(reader, TrainViews(SETTINGS), seed=3), order, 0)
    assert batch.samples.tolist() == [sample for _, sample in next(iter(order))]
    assert len(list((tmp_path / "cache").glob("*.tar"))) == 2
    assert bucket_server.faults.requests < 10  # size, bytes and offsets of two shards


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
