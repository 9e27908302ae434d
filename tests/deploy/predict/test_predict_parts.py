"""Parts of one labelling: shared, killed, repeated, and in a bucket that fails; the bytes are always the same."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from must.base import storage
from must.config import PredictConfig
from must.data.format.index import load_index
from must.deploy.predict.images import predict_images
from tests.data.shards.test_shard_gcs import upload
from tests.deploy.predict.test_predict_shards import contents, label

KILLED = """
import os, signal, sys
import pyarrow.parquet as pq
from must.config import PredictConfig
from must.deploy.predict.images import predict_images
model, shards, output = sys.argv[1:]
whole, made = pq.write_table, []

def write_table(table, file, **options):
    made.append(table)
    if len(made) < 2:
        return whole(table, file, **options)
    file.write(b"PAR1 and the first bytes")
    file.flush()
    os.kill(os.getpid(), signal.SIGKILL)

pq.write_table = write_table
predict_images(PredictConfig(model=model, shards=shards, output=output, part="1/2", workers=2))
"""


@pytest.fixture(scope="module")
def alone(digits, exported, tmp_path_factory):
    """What one program writes."""
    folder = tmp_path_factory.mktemp("alone")
    assert label(exported, digits.shards, folder, workers=1) == {"images": 270, "unreadable": 0}
    return contents(folder)


def test_parts_write_the_same_bytes(digits, exported, alone, tmp_path, capsys):
    """The last part first; of seven parts two have nothing to do, as there are five shards."""
    parts, images = 7, 0
    for number in range(parts, 0, -1):
        assert not (tmp_path / "predictions.json").exists()
        images += label(exported, digits.shards, tmp_path, workers=1, part=f"{number}/{parts}")["images"]
    assert images == 270 and contents(tmp_path) == alone
    shown = capsys.readouterr().out.splitlines()
    assert sum("are not done" in line for line in shown) == parts - 1 and "all 5 shards" in shown[-1]


def test_a_part_takes_every_nth_shard(digits, exported, alone, tmp_path):
    label(exported, digits.shards, tmp_path, workers=1, part="2/2")
    names = [shard.name.replace(".tar", ".parquet") for shard in load_index(digits.shards).shards]
    assert sorted(path.name for path in tmp_path.glob("*.parquet")) == sorted(f"predictions-{n}" for n in names[1::2])


@pytest.mark.slow
def test_a_part_killed_while_it_writes_is_done_by_another_program(digits, exported, alone, tmp_path):
    label(exported, digits.shards, tmp_path, workers=1, part="2/2")
    command = [sys.executable, "-c", KILLED, str(exported[1]), digits.shards, str(tmp_path)]
    assert subprocess.run(command, check=False, capture_output=True).returncode == -signal.SIGKILL
    assert len(list(tmp_path.glob("*.parquet"))) == 3 and not (tmp_path / "predictions.json").exists()
    # where a file that is being written needs a name, it is still there
    half = {path.name: path.read_bytes() for path in tmp_path.glob(f"{storage.TEMPORARY}*")}
    label(exported, digits.shards, tmp_path, workers=2, part="1/2")
    assert contents(tmp_path) == alone | half


@pytest.mark.slow
def test_two_programs_at_once_on_all_shards(digits, exported, alone, tmp_path):
    arguments = ["--model", str(exported[1]), "--shards", digits.shards, "--output", str(tmp_path), "--workers", "1"]
    command = [sys.executable, "-m", "must", "predict", *arguments]
    processes = [subprocess.Popen(command, stdout=subprocess.DEVNULL) for _ in range(2)]
    assert [process.wait() for process in processes] == [0, 0] and contents(tmp_path) == alone


def test_a_part_of_another_run_is_refused(digits, exported, tmp_path):
    label(exported, digits.shards, tmp_path, workers=1, part="1/2")
    for other in ({"top_k": 3}, {"abstain": 0.4}, {"split": "test"}):
        with pytest.raises(ValueError, match=r"run\.json is of another run: its"):
            label(exported, digits.shards, tmp_path, workers=1, part="2/2", **other)
    assert len(list(tmp_path.glob("*.parquet"))) == 3


@pytest.mark.slow
def test_a_failing_bucket_gets_the_bytes_of_a_folder(bucket_server, digits, exported, alone, tmp_path):
    """Shards, model and output in it; two parts, and one of them again with nothing left to do."""
    upload(Path(digits.shards), f"{bucket_server.uri}/shards")
    storage.upload(exported[1] / "model.onnx", f"{bucket_server.uri}/onnx/model.onnx")
    bucket_server.faults.plan = ["", "503", "", "cut", "", "", "429", "slow", "lost"]
    places = {name: f"{bucket_server.uri}/{name}" for name in ("shards", "output")}
    for part in ("1/2", "2/2", "1/2"):
        predict_images(PredictConfig(model=f"{bucket_server.uri}/onnx", **places, part=part, workers=2))
    bucket_server.faults.plan = []
    found = {entry.name for entry in storage.list_files(places["output"])}
    assert {name: storage.read_bytes(f"{places['output']}/{name}") for name in found} == alone
    assert json.loads(alone["predictions.json"])["rows"] == 270
    assert bucket_server.faults.done["503"] and bucket_server.faults.done["cut"]


def test_a_shard_changed_in_the_bucket_is_refused(bucket_server, digits, exported, tmp_path):
    upload(Path(digits.shards), f"{bucket_server.uri}/shards")
    first = load_index(digits.shards).shards[0]
    storage.write_bytes(f"{bucket_server.uri}/shards/{first.name}", bytes(first.bytes))
    with pytest.raises(ValueError, match=f"{first.name} is damaged: its sha256 is not the index's"):
        label(exported, f"{bucket_server.uri}/shards", tmp_path, workers=1)
    assert not list(tmp_path.glob("*.parquet"))
