"""Images damaged in their shard after `must shard`: replaced the same way each time, named, counted, and limited."""

import re
from pathlib import Path

import pytest
import torch

from must.config import TrainConfig
from must.data.augment import TrainViews
from must.data.format import load_offsets
from must.data.loader import REPLACEMENTS, GlobalBatches, TrainDataset, train_batches
from must.data.reader import ShardReader
from must.evaluation.figures import read_training_log
from must.training import log
from must.training.trainer import train
from tests import zoo
from tests.data.augment.test_views import SETTINGS
from tests.data.shards.test_shard import run
from tests.evaluation.digits import digits


def shards_with(folder: Path, whole: int, damaged: int) -> str:
    """Shards with images that were whole when they were packed, and whose second half has become zeros since."""
    zoo.fill(folder / "in", whole)
    zoo.put(folder / "in", {f"damaged-{n}.png": zoo.encoded(zoo.picture(1000 + n, 300, 200)) for n in range(damaged)})
    for shard in run(folder / "in", folder / "out", samples_per_shard=50).shards:
        path = folder / "out" / shard.name
        data = bytearray(path.read_bytes())
        for image, size, text, length in load_offsets(str(folder / "out"), shard).tolist():
            if b'"damaged-' in data[text : text + length]:
                data[image + size // 2 : image + size] = bytes(size - size // 2)
        path.write_bytes(data)
    return str(folder / "out")


def test_a_damaged_image_is_replaced_by_the_next_and_named(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    reader = ShardReader(shards_with(tmp_path, 40, 8), "train")
    order = GlobalBatches(reader.sizes, 12, 1, 0)
    runs = [list(train_batches(TrainDataset(reader, TrainViews(*SETTINGS), 0), order, workers)) for workers in (0, 2)]
    for ours, theirs in zip(*runs, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    asked = [sample for batch in order for _, sample in batch]
    used = [sample for batch in runs[0] for sample in batch.samples.tolist()]
    sources = [reader.description(sample)["source"] for sample in asked]
    assert [a == u for a, u in zip(asked, used, strict=True)] == [not s.startswith("damaged") for s in sources]
    assert not any(reader.description(sample)["source"].startswith("damaged") for sample in used)
    assert sum(int(batch.replaced) for batch in runs[0]) == 8
    lines = capfd.readouterr().err.strip().splitlines()[:5]
    pattern = r"warning: sample \d+ of train-00000\d.tar \(damaged-\d.png\) cannot be decoded and is replaced by .+: .+"
    assert all(re.match(pattern, line) for line in lines)
    assert lines[-1].endswith("further ones are only counted")


def test_too_many_in_a_row_end_the_run(tmp_path: Path) -> None:
    reader = ShardReader(shards_with(tmp_path, 0, REPLACEMENTS), "train")
    with pytest.raises(ValueError, match=f"{REPLACEMENTS} samples in a row cannot be read"):
        TrainDataset(reader, TrainViews(*SETTINGS), 0)[0, 0]


def test_training_stops_when_too_many_are_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stopped, whole = tmp_path / "stopped", tmp_path / "whole"
    settings = {"shards": shards_with(tmp_path, 144, 6), "classifier": digits().classifier, "epochs": 1}
    settings |= {"batch_size": 25, "workers": 0, "mask_patch_size": 8, "log_every": 2}
    message = r"^.*stopped after step \d: \d of \d+ images could not be decoded, more.*$"
    with pytest.raises(ValueError, match=message):
        train(TrainConfig(**settings, output=str(stopped)))
    assert not (stopped / "model.json").exists()
    monkeypatch.setattr(log, "MOST_REPLACED", 0.1)
    assert train(TrainConfig(**settings, output=str(whole))).replaced_samples == 6
    assert read_training_log(str(whole))[-1]["replaced_samples"] == 6
