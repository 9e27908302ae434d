"""What a user sees of a DAG in containers that cannot go on."""

import subprocess

import pytest

from tests.containers.local import ROOT, command, run_local, write

pytestmark = pytest.mark.usefixtures("docker_host")


def test_a_failing_component_fails_the_run(demo, tmp_path):
    """kfp's own DockerRunner would go on: the engine has removed the container when it asks for the exit code."""
    parameters = write(tmp_path, demo, classes=str(demo / "classes-that-are-not-there.yaml"))
    result = run_local(parameters, tmp_path / "run")
    assert result.returncode == 2
    assert "no such file" in result.stdout and "the stage 'inputs' failed" in result.stderr
    assert "Traceback" not in result.stderr and "== train ==" not in result.stdout


def test_an_image_that_is_not_there_is_named(demo, tmp_path):
    other = tmp_path / "pipeline.yaml"
    text = (ROOT / "pipeline" / "must_pipeline.yaml").read_text()
    other.write_text(text.replace("image: must-shard:", "image: localhost:1/must-shard-of-nobody:"))
    parameters = write(tmp_path, demo)
    arguments = [*command(parameters, tmp_path / "run"), "--pipeline", str(other)]
    result = subprocess.run(arguments, capture_output=True, text=True, check=False, timeout=1500)
    assert result.returncode == 2
    assert "must-shard-of-nobody" in result.stderr and "make images" in result.stderr
    assert "Traceback" not in result.stderr
