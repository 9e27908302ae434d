"""The sharding stage of the pipeline passes on what `must shard` itself would take."""

import json
from types import SimpleNamespace

import pytest

from must_components.shard import shard
from tests import zoo


@pytest.fixture
def run(tmp_path):
    """The component on a folder where one file of eleven is no image."""
    zoo.fill(tmp_path / "in", 10)
    (tmp_path / "in" / "junk.jpg").write_bytes(b"no image")

    def run(**values):
        artifact = SimpleNamespace(path=str(tmp_path / "index"), metadata={})
        return shard.python_func(str(tmp_path / "in"), str(tmp_path / "work"), "7", artifact, **values)

    return run


def test_a_run_may_allow_more_rejected_files_and_fewer_workers(run, tmp_path, capfd):
    with pytest.raises(SystemExit, match="2"):
        run(settings={"workers": 1})
    assert "--max-rejected" in capfd.readouterr().err
    run(settings={"workers": 1, "max-rejected": 0.2, "samples_per_shard": 4})
    index = json.loads((tmp_path / "work" / "shards" / "index.json").read_text())
    assert index["rejected"] == 1 and max(part["samples"] for part in index["shards"]) == 4


@pytest.mark.parametrize("name", ["output", "test-source"])
def test_what_the_pipeline_itself_gives_cannot_be_given_twice(run, capfd, name):
    with pytest.raises(SystemExit, match="2"):
        run(settings={name: "elsewhere"})
    assert (
        f"shard_settings.{name.replace('-', '_')}: is set by the pipeline or a parameter of it"
        in capfd.readouterr().err
    )
