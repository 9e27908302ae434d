"""Labelling a folder of shards: the classes of single images, also killed, repeated, and in a bucket that fails."""

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from must.base import storage
from must.config import PredictConfig, ShardConfig
from must.data.format.index import load_index
from must.data.shards.build import shard
from must.deploy.predict.images import predict_images
from must.deploy.predict.session import Classified
from must.deploy.predict.shards import GROUP_ROWS, Decoded, Run, make_rows, write_rows
from must.deploy.predict.writer import Options
from tests.common import one_line, read_csv
from tests.data.shards.test_shard_gcs import upload


def label(exported, shards, output, **options):
    values = {"model": str(exported[1]), "shards": shards, "output": str(output)}
    return predict_images(PredictConfig(**values | options))


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def preset_rows(folder):
    return [row for path in sorted(folder.glob("*.parquet")) for row in pq.read_table(path).to_pylist()]


@pytest.fixture(scope="module")
def single(digits, exported, tmp_path_factory):
    """{file: its row of the CSV file} of images that are predicted as files, one in a forward pass."""
    output = tmp_path_factory.mktemp("single") / "out.csv"
    images = [str(digits.images / split) for split in ("train", "test")]
    predict_images(PredictConfig(model=str(exported[1]), images=images, output=str(output), top_k=3, batch_size=1))
    rows = read_csv(output)
    assert {row.pop("abstained") for row in rows} == {"0"}  # the Parquet files have it only where there is a threshold
    assert {row.pop("similarity") for row in rows} == {""}  # the model has no memory
    return {row.pop("image").removeprefix(f"{digits.images}/"): row for row in rows}


@pytest.mark.parametrize("workers", [1, 2])
def test_rows_are_those_of_single_images(digits, exported, tmp_path, single, workers):
    """To the last digit of the CSV file. One image a forward pass: others in it may change a float's last bits."""
    counts = label(exported, digits.shards, tmp_path / "rows", top_k=3, batch_size=1, workers=workers)
    assert counts == {"images": 270, "unreadable": 0}
    found = {}
    index = load_index(digits.shards)
    for one in index.shards:
        table = pq.read_table(tmp_path / "rows" / f"predictions-{one.name.removesuffix('.tar')}.parquet")
        assert table.num_rows == one.samples
        for row in table.to_pylist():
            assert row.pop("reason") is None and row.pop("key").replace("-", "").isdigit()
            assert row.pop("margin") == pytest.approx(row["probability"] - row["probability_2"], abs=1e-7)
            assert row.pop("similarity") is None, "the model has no memory"
            name = f"{one.split}/{row.pop('source')}"
            found[name] = {key: f"{x:.6f}" if isinstance(x, float) else x for key, x in row.items()}
    assert found == single


def test_a_split_has_a_summary_and_only_what_is_missing_is_made_again(digits, exported, tmp_path, capsys):
    def run():
        return label(exported, digits.shards, tmp_path, split="test", workers=1)

    assert run() == {"images": 120, "unreadable": 0}
    before, (first, second) = contents(tmp_path), sorted(tmp_path.glob("*.parquet"))
    second.unlink()
    (tmp_path / "predictions.json").unlink()
    time = first.stat().st_mtime_ns
    assert run() == {"images": 120, "unreadable": 0} and contents(tmp_path) == before
    assert "(files of 2 shards, 1 were there)" in capsys.readouterr().out and first.stat().st_mtime_ns == time
    found = json.loads(before["predictions.json"])
    rows = preset_rows(tmp_path)
    assert found["rows"] == len(rows) == 120 and found["unreadable"] == 0 and "coverage" not in found
    assert found["classes"] == {name: [row["class"] for row in rows].count(name) for name in found["classes"]}
    assert sum(found["classes"].values()) == 120
    assert found["model_sha256"] == storage.compute_sha256(exported[1] / "model.onnx")
    assert found["index_sha256"] == load_index(digits.shards).sha256
    story = json.loads(pq.read_metadata(first).metadata[b"must"])
    assert story["run"].items() <= found.items() and story["rows"] == 64


def test_predictions_of_another_run_are_refused_in_one_line(digits, exported, embedded, tmp_path, monkeypatch):
    output, single = tmp_path / "out", tmp_path / "one"
    values = {"model": str(embedded), "shards": digits.shards, "output": output, "workers": 1, "split": "test"}
    label(exported, **values)
    before = contents(output)
    shutil.copytree(digits.images / "test/zero", single / "images/zero")
    index = shard(ShardConfig(source=str(single / "images"), output=str(single / "shards"), workers=1))
    changes: list[tuple[dict[str, Any], str]] = [
        ({"model": str(exported[1])}, "its model_sha256 is"),
        ({"shards": str(single / "shards"), "split": "train"}, f"its index_sha256 is .*, here it is '{index.sha256}'"),
        ({"top_k": 2}, "its top_k is '1', here it is '2'"),
        ({"abstain": 0.5}, "its abstain is"),
        ({"split": ""}, "its split is 'test', here it is ''"),
    ]
    for options, message in changes:
        with one_line(rf"run\.json is of another run: {message}.*choose another --output"):
            label(exported, **values | options)
        if options.keys() & {"model", "top_k"}:  # each file tells too
            (output / "run.json").unlink()
            with pytest.raises(ValueError, match=f"parquet is of another run: {message}"):
                label(exported, **values | options)
            (output / "run.json").write_bytes(before["run.json"])
    with monkeypatch.context() as patch:  # as if both had begun at once
        patch.setattr("must.deploy.predict.shards.storage.exists", lambda uri: not uri.endswith("run.json"))
        with pytest.raises(ValueError, match=r"run\.json is of another run: its top_k is"):
            label(exported, **values | {"top_k": 2})
    assert contents(output) == before


@pytest.mark.parametrize("content", [b"", b"PAR1" + bytes(100) + b"\xff\xff\xff\x7fPAR1", "foreign", "cut"])
def test_a_file_that_is_not_ours_is_refused(digits, exported, tmp_path, content):
    label(exported, digits.shards, tmp_path, workers=1, split="test")
    path = tmp_path / "predictions-test-000001.parquet"
    if content == "foreign":
        pq.write_table(pa.table({"class": ["a"]}), path)
    else:
        path.write_bytes(path.read_bytes()[:-1] if content == "cut" else content)
    with pytest.raises(ValueError, match=r"predictions-test-000001.parquet is damaged, or no file of .*; delete it"):
        label(exported, digits.shards, tmp_path, workers=1, split="test")


@pytest.mark.parametrize("batch", [1, 32])
def test_an_image_that_cannot_be_decoded_is_a_row_with_a_reason(digits, exported, tmp_path, batch):
    """The third image of the first shard: its first bytes are zeros, and the index has the checksum of that."""
    shards = tmp_path / "shards"
    shutil.copytree(digits.shards, shards)
    index = json.loads((shards / "index.json").read_text())
    first = index["shards"][0]
    offsets = np.load(shards / first["name"].replace(".tar", ".npy"))
    with (shards / first["name"]).open("r+b") as file:
        file.seek(int(offsets[2, 0]))
        file.write(bytes(20))
    first["sha256"] = storage.compute_sha256(shards / first["name"])
    (shards / "index.json").write_text(json.dumps(index))
    values = {"workers": 2, "batch_size": batch, "abstain": 0.9}
    assert label(exported, str(shards), tmp_path / "out", **values) == {"images": 269, "unreadable": 1}
    rows = pq.read_table(tmp_path / "out" / f"predictions-{first['name'].removesuffix('.tar')}.parquet").to_pylist()
    assert [number for number, row in enumerate(rows) if row["reason"]] == [2]
    row = rows[2]
    assert row["reason"] == "not an image of a known format" and row["source"].endswith(".png")
    assert row["class"] is row["probability"] is row["margin"] is None
    assert row["abstained"] is False
    assert json.loads((tmp_path / "out/predictions.json").read_text())["unreadable"] == 1


@pytest.mark.parametrize("rows", [0, 31, GROUP_ROWS + 100])
def test_a_shard_of_any_number_of_rows(tmp_path, rows):
    """In order, in batches of 31, every seventh without an image; several row groups."""
    decoded = [Decoded(str(n), "s", np.zeros(1) if n % 7 else None, "" if n % 7 else "x") for n in range(rows)]

    def classifier(pixels):
        return Classified(np.tile(np.array([[0.25, 0.75]], np.float32), (len(pixels), 1)), np.full(len(pixels), 0.5))

    batches = [decoded[start : start + 31] for start in range(0, rows, 31)]
    with storage.open_write(str(tmp_path / "x.parquet")) as file:
        made = make_rows(batches, classifier, ["a", "b"], Options(), lambda images: None)
        stats = write_rows(file, made, SimpleNamespace(name="x.tar", sha256="s"), ["a", "b"], Run("m", "i", "", 1, 0.0))
    assert (stats["rows"], stats["unreadable"]) == (rows, -(-rows // 7))
    found = pq.read_table(tmp_path / "x.parquet").to_pylist()
    assert [row["key"] for row in found] == [str(n) for n in range(rows)]
    assert [row["class"] for row in found] == ["b" if n % 7 else None for n in range(rows)]
    assert [row["reason"] for row in found] == [None if n % 7 else "x" for n in range(rows)]
    assert pq.ParquetFile(tmp_path / "x.parquet").metadata.num_row_groups == -(-rows // GROUP_ROWS)


def test_wrong_inputs(digits, exported, tmp_path):
    ours = {"model": str(exported[1]), "shards": digits.shards, "output": str(tmp_path / "out")}
    (tmp_path / "foreign.onnx").write_bytes(b"no model")
    for changes, message in (
        ({"abstain": 1.5}, "--abstain must be from 0 to 1"),
        ({"output": ""}, "--shards needs --output"),
        ({"output": "out.csv"}, "with --shards it is a folder"),
        ({"shards": "", "images": ["a.png"], "output": "", "split": "test"}, "--split is for --shards"),
        ({"abstain": -0.5}, "or -1, for the threshold in the model"),
        ({"split": "none"}, "no split 'none'"),
        ({"shards": str(tmp_path)}, "holds no index.json"),
        ({"model": str(tmp_path)}, "no such file"),
        ({"model": str(tmp_path / "foreign.onnx")}, "onnxruntime cannot read it"),
        ({"shards": "", "output": ""}, "no image given"),
        ({"top_k": 0}, "at least 1"),
        ({"index_sha256": "0" * 64}, "expected 000"),
    ):
        with one_line(message):
            predict_images(PredictConfig(**ours | changes))
    assert not (tmp_path / "out").exists()


def test_without_pyarrow_one_line_says_what_to_install(digits, exported, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ValueError, match=r"pip install 'must-clip\[parquet\]'"):
        label(exported, digits.shards, tmp_path)


@pytest.mark.parametrize(
    "fault, message",
    [("missing", "is missing"), ("short", "bytes, its index says"), ("table", "no sample at byte 512")],
)
def test_a_broken_shard_is_one_line_and_leaves_whole_files_alone(digits, exported, tmp_path, fault, message):
    shards, output = tmp_path / "shards", tmp_path / "out"
    shutil.copytree(digits.shards, shards)
    last = load_index(str(shards)).shards[-1]
    path = shards / last.name
    if fault == "missing":
        path.unlink()
    elif fault == "short":
        path.write_bytes(path.read_bytes()[:-512])
    else:
        path.write_bytes(bytes(last.bytes))
    with one_line(message) as error:
        label(exported, str(shards), output, workers=2)
    assert last.name in str(error.value)
    assert len(list(output.glob("*.parquet"))) == 4 and not list(output.glob(".tmp*"))


KILLED = """
import os, signal, sys
from pyarrow.parquet import ParquetWriter
from must.config import PredictConfig
from must.deploy.predict.images import predict_images
model, shards, output = sys.argv[1:]
whole, made = ParquetWriter.write_table, []

def write_table(writer, *table):
    made.append(writer)
    whole(writer, *table)
    if len(made) == 2:  # the second shard's, without the file's end
        os.kill(os.getpid(), signal.SIGKILL)

ParquetWriter.write_table = write_table
predict_images(PredictConfig(model=model, shards=shards, output=output, workers=2))
"""


@pytest.fixture(scope="module")
def whole(digits, exported, tmp_path_factory):
    """What an undisturbed run writes."""
    folder = tmp_path_factory.mktemp("whole")
    assert label(exported, digits.shards, folder, workers=1) == {"images": 270, "unreadable": 0}
    return contents(folder)


@pytest.mark.slow
def test_a_run_killed_while_it_writes_goes_on_at_the_first_missing_shard(digits, exported, whole, tmp_path):
    command = [sys.executable, "-c", KILLED, str(exported[1]), digits.shards, str(tmp_path)]
    assert subprocess.run(command, check=False, capture_output=True).returncode == -signal.SIGKILL
    assert len(list(tmp_path.glob("*.parquet"))) == 1 and not (tmp_path / "predictions.json").exists()
    # where a file that is being written needs a name, it is still there
    half = {path.name: path.read_bytes() for path in tmp_path.glob(f"{storage.TEMPORARY}*")}
    label(exported, digits.shards, tmp_path, workers=2)
    assert contents(tmp_path) == whole | half


@pytest.mark.slow
def test_a_failing_bucket_gets_the_bytes_of_a_folder(bucket_server, digits, exported, whole):
    """Shards, model and output in it; the second time with nothing left to do."""
    upload(Path(digits.shards), f"{bucket_server.uri}/shards")
    storage.upload(exported[1] / "model.onnx", f"{bucket_server.uri}/onnx/model.onnx")
    bucket_server.faults.plan = ["", "503", "", "cut", "", "", "429", "slow", "lost"]
    places = {name: f"{bucket_server.uri}/{name}" for name in ("shards", "output")}
    for _ in range(2):
        predict_images(PredictConfig(model=f"{bucket_server.uri}/onnx", **places, workers=2))
    bucket_server.faults.plan = []
    found = {entry.name for entry in storage.list_files(places["output"])}
    assert {name: storage.read_bytes(f"{places['output']}/{name}") for name in found} == whole
    assert json.loads(whole["predictions.json"])["rows"] == 270
    assert bucket_server.faults.done["503"] and bucket_server.faults.done["cut"]


def test_other_bytes_in_a_bucket_are_refused(bucket_server, digits, exported, tmp_path):
    upload(Path(digits.shards), f"{bucket_server.uri}/shards")
    first = load_index(f"{bucket_server.uri}/shards").shards[0]
    storage.write_bytes(f"{bucket_server.uri}/shards/{first.name}", bytes(first.bytes))
    with pytest.raises(ValueError, match="is damaged: its sha256 is not the index's"):
        label(exported, f"{bucket_server.uri}/shards", tmp_path / "rows", workers=1)
