"""Stages that several pods share: what a part leaves, and who takes it up; and the whole DAG with parts."""

import json
from types import SimpleNamespace

import pyarrow.parquet as pq
import pytest
import yaml

from must.data.format.index import load_index
from must.runtime.notes import read_notes
from must_components.shard import shard
from must_components.shard_part import shard_part
from must_pipeline.cluster.rules import load_cluster
from tests import zoo
from tests.pipeline.compiled import compile_apart
from tests.pipeline.local import Run, small_demo

SETTINGS = {"samples_per_shard": 4, "workers": 1}


def part(number, source, work, run_id="7", **values):
    shard_part.python_func(f"{number}/2", str(source), str(work), run_id, settings=SETTINGS, **values)


def finish(source, work, tmp_path, run_id="7", **values):
    artifact = SimpleNamespace(path=str(tmp_path / "index"), metadata={})
    sha256 = shard.python_func(str(source), str(work), run_id, artifact, settings=SETTINGS, **values)
    return sha256, artifact.metadata["images"]


def results(work, run_id="7"):
    return {note.stage: note.result for note in read_notes(str(work), run_id)}


def test_the_stage_after_the_parts_takes_the_index_that_they_have_made_and_lists_nothing(tmp_path):
    zoo.fill(tmp_path / "in", 20)
    part(2, tmp_path / "in", tmp_path / "work")
    part(1, tmp_path / "in", tmp_path / "work")
    made = load_index(str(tmp_path / "work" / "shards")).sha256
    zoo.fill(tmp_path / "in", 1, start=100)  # it would be refused as another source
    assert finish(tmp_path / "in", tmp_path / "work", tmp_path) == (made, 20)
    found = results(tmp_path / "work")
    assert found["shard-1-of-2"] == "the shards are there, revision 0" and found["shard"] == "20 images, revision 0"
    assert found["shard-2-of-2"] == "done; other parts have work left or make the shards"


def test_it_does_what_a_lost_part_has_left(tmp_path):
    zoo.fill(tmp_path / "in", 20)
    part(1, tmp_path / "in", tmp_path / "work")
    assert finish(tmp_path / "in", tmp_path / "work", tmp_path)[1] == 20


@pytest.mark.slow
def test_a_new_run_gives_up_what_another_run_of_other_images_has_left(tmp_path):
    zoo.fill(tmp_path / "in", 20)
    part(1, tmp_path / "in", tmp_path / "work")
    zoo.fill(tmp_path / "in", 4, start=100)
    with pytest.raises(SystemExit, match="2"):  # the same run: its source has changed
        part(2, tmp_path / "in", tmp_path / "work")
    for number in (1, 2):
        part(number, tmp_path / "in", tmp_path / "work", run_id="8")
    assert finish(tmp_path / "in", tmp_path / "work", tmp_path, run_id="8")[1] == 24


@pytest.mark.slow
def test_the_dag_with_parts_makes_what_one_pod_makes_and_labels_it(tmp_path):
    demo = small_demo(tmp_path / "demo") | {"shard_settings": {"samples_per_shard": 20, "workers": 1}}
    predictions = tmp_path / "volume" / "predictions"
    cluster = {
        "shard": {"pods": 2},
        "predict": {"pods": 2, "uri": str(predictions), "settings": {"abstain": "0.5", "embeddings": "true"}},
        "volume": {"claim": "work", "mount": str(tmp_path / "volume")},
    }
    (tmp_path / "cluster.yaml").write_text(yaml.safe_dump(cluster))
    compile_apart(load_cluster(tmp_path / "cluster.yaml"), tmp_path / "pipeline.yaml")
    run = Run(demo, tmp_path / "work", "--verbose", "--pipeline", tmp_path / "pipeline.yaml")
    assert run.code == 0, run.log + run.error
    assert run.stages.count("shard-part") == run.stages.count("predict") == 2
    version = json.loads((run.artifacts["promoted"]).read_text())["version"]
    assert [path.name for path in predictions.iterdir()] == [version]
    folder = predictions / version
    summary = json.loads((folder / "predictions.json").read_text())
    index = load_index(str(tmp_path / "work" / "shards"))
    assert summary["rows"] == sum(one.samples for one in index.shards) and summary["abstain"] == 0.5
    assert summary["index_sha256"] == index.sha256 and summary["embeddings"] is True
    tables = [pq.read_table(path) for path in folder.glob("*.parquet")]
    assert len(tables) == len(index.shards) and {len(row) for t in tables for row in t["embedding"].to_pylist()} == {64}
    page = run.artifacts["what_came_of_it"].read_text()
    assert page.startswith("# Promoted") and "| predict-2-of-2 | done |" in page and "| shard-1-of-2 | done |" in page
