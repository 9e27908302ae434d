"""--runner docker, as far as it goes without an engine; tests/containers has the rest."""

import pytest

from must_pipeline.files import COMPILED, documents
from must_pipeline.local_runner import as_first_process, local_paths


def test_without_an_engine_it_is_one_line(tmp_path, must_pipeline, monkeypatch, capsys):
    (tmp_path / "p.yaml").write_text("source: images\nclasses: imagenet\n")
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/no.sock")
    words = ["--runner", "docker", "--parameters", tmp_path / "p.yaml", "--output", tmp_path / "run"]
    assert must_pipeline("run", *words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"no container engine answers at unix://{tmp_path}/no.sock (DOCKER_HOST)" in line


def test_python_takes_the_place_of_the_shell_in_every_stage():
    """If kfp compiles another command one day, this fails; the signal would be lost in silence."""
    (spec, *_) = documents(COMPILED.read_text())
    commands = [e["container"]["command"] for e in spec["deploymentSpec"]["executors"].values() if "container" in e]
    assert commands
    for command in commands:
        changed = as_first_process(command)
        assert sum(" exec python3 " in part for part in changed) == 1
        assert [part.replace(" exec python3 ", " python3 ") for part in changed] == command


@pytest.mark.parametrize(
    "value, expected",
    [
        ("images", ["images"]),
        ("images/x-{000..003}.tar", ["images"]),
        ({"pretrained": "images/w.pt", "epochs": 2}, ["images/w.pt"]),
        ("gs://bucket/images", []),
        ("ViT-B-16-quickgelu", []),
        ("", []),
        (2, []),
    ],
)
def test_the_local_paths_of_a_parameter(tmp_path, monkeypatch, value, expected):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "w.pt").touch()
    assert list(local_paths(value)) == [tmp_path / path for path in expected]
