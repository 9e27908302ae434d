"""The stage shard, by one pod or several: what a part leaves, and who takes it up. The whole DAG: test_run.py."""

from types import SimpleNamespace

import pytest

from must.data.format.index import load_index
from must.runtime.notes import read_notes
from must_components.shard import shard
from must_components.shard_part import shard_part
from tests import zoo

SETTINGS = {"samples_per_shard": 4, "workers": 1}


def part(number, source, work, run_id="7"):
    shard_part.python_func(f"{number}/2", str(source), str(work), run_id, settings=SETTINGS)


def finish(source, work, tmp_path, run_id="7", **settings):
    artifact = SimpleNamespace(path=str(tmp_path / "index"), metadata={})
    sha256 = shard.python_func(str(source), str(work), run_id, artifact, settings=SETTINGS | settings)
    return sha256, artifact.metadata["images"]


def test_the_stage_after_the_parts_takes_the_index_that_they_have_made_and_lists_nothing(tmp_path):
    zoo.fill(tmp_path / "in", 20)
    part(2, tmp_path / "in", tmp_path / "work")
    part(1, tmp_path / "in", tmp_path / "work")
    made = load_index(str(tmp_path / "work" / "shards")).sha256
    zoo.fill(tmp_path / "in", 1, start=100)  # it would be refused as another source
    assert finish(tmp_path / "in", tmp_path / "work", tmp_path) == (made, 20)
    found = {note.stage: note.result for note in read_notes(str(tmp_path / "work"), "7")}
    assert found["shard-1-of-2"] == "the shards are there, revision 0" and found["shard"] == "20 images, revision 0"
    assert found["shard-2-of-2"] == "done; other parts have work left or make the shards"


def test_a_run_may_allow_more_rejected_files(tmp_path, capfd):
    zoo.fill(tmp_path / "in", 10)
    (tmp_path / "in" / "junk.jpg").write_bytes(b"no image")
    with pytest.raises(SystemExit, match="2"):
        finish(tmp_path / "in", tmp_path / "work", tmp_path)
    assert "--max-rejected" in capfd.readouterr().err
    finish(tmp_path / "in", tmp_path / "work", tmp_path, **{"max-rejected": 0.2})
    index = load_index(str(tmp_path / "work" / "shards"))
    assert index.rejected == 1 and max(part.samples for part in index.shards) == 4


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
