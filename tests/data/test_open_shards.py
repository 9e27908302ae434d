"""Shards through webdataset's pipeline: the same images and labels as the reader's, wherever they lie."""

import io
import re
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import webdataset
from PIL import Image
from torch.utils.data import DataLoader

import must
from must.base import storage
from must.config import ShardConfig
from must.data.image.decode import decode
from must.data.loading.reader import ShardReader
from must.data.shards.build import shard

ROOT = Path(__file__).parents[2]


def small(image: Image.Image) -> np.ndarray:
    return np.asarray(image.resize((8, 8)))


@pytest.fixture(scope="module")
def shards(digits, tmp_path_factory):
    """The digits' shards, at a path that an URL would be cut at."""
    return str(shutil.copytree(digits.shards, tmp_path_factory.mktemp("data") / "a#b?c{1..2}::d"))


def test_the_same_samples_in_the_same_order_as_the_reader(shards):
    dataset, reader = must.open_shards(shards, "train"), ShardReader(shards, "train")
    assert isinstance(dataset, webdataset.WebDataset) and dataset.classes == reader.index.labels
    found = list(dataset)
    assert len(found) == len(reader) == 150
    for number, sample in enumerate(found):
        description = reader.description(number)
        assert sample["source"] == description["source"]
        assert dataset.classes[sample["label"]] == description["label"]
        assert np.array_equal(np.asarray(sample["image"]), np.asarray(decode(reader.image(number))))
        assert sample["image"].mode == "RGB"


def test_it_is_ready_for_batches_and_shuffling(shards):
    batches = list(must.open_shards(shards, "test", small).batched(50))
    assert [batch["image"].shape for batch in batches] == [(50, 8, 8, 3), (50, 8, 8, 3), (20, 8, 8, 3)]
    assert batches[0]["label"].dtype.kind == "i" and len(batches[0]["source"]) == 50
    pairs = must.open_shards(shards, "test", small).shuffle(100).to_tuple("image", "label").batched(120)
    ((images, labels),) = pairs
    ordered = np.concatenate([batch["label"] for batch in batches])
    assert images.shape == (120, 8, 8, 3) and sorted(labels) == sorted(ordered) and list(labels) != list(ordered)


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_workers_share_out_the_shards(shards, workers):
    """Four workers for three shards: one has nothing to do."""
    loader = DataLoader(must.open_shards(shards, "train", small).batched(32), batch_size=None, num_workers=workers)
    sources = [source for batch in loader for source in batch["source"]]
    assert len(sources) == len(set(sources)) == 150


def test_from_a_bucket(shards, bucket_server, monkeypatch):
    from must.data.loading import open_shards as module

    monkeypatch.setattr(module, "AT_ONCE", 20_000)  # so that a shard takes several pieces
    for path in Path(shards).iterdir():
        storage.upload(path, f"{bucket_server.uri}/wds/{path.name}")
    near, far = (must.open_shards(uri, "test", small) for uri in (shards, f"{bucket_server.uri}/wds"))
    count = 0
    for one, other in zip(near, far, strict=True):
        assert one["source"] == other["source"] and np.array_equal(one["image"], other["image"])
        count += 1
    assert count == 120


def test_what_is_not_labelled_or_cannot_be_decoded(tmp_path):
    rng = np.random.default_rng(0)
    (tmp_path / "in").mkdir()
    for number in range(6):
        file = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (20, 30, 3), dtype=np.uint8)).save(file, "png")
        data = file.getvalue()
        (tmp_path / "in" / f"{number}.png").write_bytes(data[:900] if number == 3 else data)
    output = str(tmp_path / "out")
    shard(ShardConfig(source=str(tmp_path / "in"), output=output, validate="header", workers=1, split={"train": 1}))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        found = list(must.open_shards(output))
    assert len(found) == 5 and {sample["label"] for sample in found} == {-1}
    assert "3.png" not in [sample["source"] for sample in found]
    assert any("train-000000.tar: " in str(warning.message) for warning in said)


def test_wrong_places_are_one_line(shards, tmp_path):
    with pytest.raises(ValueError, match=r"holds no index\.json; make it with: must shard"):
        must.open_shards(str(tmp_path))
    with pytest.raises(ValueError, match="no split 'validation'; there are: "):
        must.open_shards(shards, "validation")
    with pytest.raises(AttributeError, match="no attribute 'open_shard'"):
        must.open_shard  # noqa: B018


def test_importing_must_imports_nothing_heavy():
    code = "import sys, must; sys.exit(bool({'torch', 'webdataset', 'numpy', 'PIL'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False, cwd=ROOT).returncode == 0


def test_the_linear_probe_of_the_documentation_runs(digits, tmp_path, monkeypatch, capsys):
    (code,) = re.findall(r"```python\n(.*?must\.open_shards.*?)```", (ROOT / "docs/data.md").read_text(), re.DOTALL)
    from must.config import ExportConfig
    from must.deploy.export.export import export

    ours = str(tmp_path / "ours")
    export(ExportConfig(model=digits.zero_shot, classifier=digits.classifier, to="open_clip", output=ours))
    torch.manual_seed(0)
    exec(code.replace('"shards/"', repr(digits.shards)).replace("local-dir:ours", f"local-dir:{ours}"), {})
    (accuracy,) = re.findall(r"accuracy (\d\.\d+)", capsys.readouterr().out)
    assert float(accuracy) > 0.6, "ten digits, 150 labelled ones"
