"""The stage shard, by one pod or several. The whole DAG: test_run.py."""

from types import SimpleNamespace

import pytest

from must.data.format.index import load_index
from must.runtime.notes import read_notes
from must_components.components import shard, shard_part
from tests import zoo

SETTINGS = {"samples_per_shard": 4, "workers": 1}


def part(number, source, work):
    shard_part.python_func(f"{number}/2", str(source), str(work), "7", settings=SETTINGS)


def finish(source, work, tmp_path, run="7"):
    artifact = SimpleNamespace(path=str(tmp_path / "index"), metadata={})
    sha256 = shard.python_func(str(source), str(work), run, artifact, settings=SETTINGS)
    return sha256, artifact.metadata["images"]


def test_the_stage_after_the_parts_makes_their_shards(tmp_path, capfd):
    source, work = tmp_path / "in", tmp_path / "work"
    zoo.fill(source, 20)
    part(2, source, work)
    with pytest.raises(SystemExit, match="2"):
        finish(source, work, tmp_path)
    assert "these are not done: --part 1/2" in capfd.readouterr().err
    part(1, source, work)
    made = finish(source, work, tmp_path, "8")
    assert made == (load_index(str(work / "shards")).sha256, 20)
    results = {n.stage: n.facts.result for run in "78" for n in read_notes(str(work), run)}
    assert results == {"shard-1-of-2": "done", "shard-2-of-2": "done", "shard": "20 images, revision 0"}
    part(1, source, work)  # the run is submitted again: nothing is packed again
    assert finish(source, work, tmp_path, "8") == made
