"""What a user sees of a DAG in containers that cannot go on."""

import pytest

from tests.containers.local import run_local, write

pytestmark = pytest.mark.usefixtures("docker_host")


def test_a_failing_component_fails_the_run(demo, tmp_path):
    """kfp's own DockerRunner would go on: the engine has removed the container when it asks for the exit code."""
    parameters = write(tmp_path, demo, classes=str(demo / "classes-that-are-not-there.yaml"))
    result = run_local(parameters, tmp_path / "run")
    assert result.returncode == 2
    assert "no such file" in result.stdout and "the stage 'inputs' failed" in result.stderr
    assert "Traceback" not in result.stderr and "== train ==" not in result.stdout
