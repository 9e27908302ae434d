"""The corrected DockerRunner, against the real engine."""

import pytest

from must_pipeline.local_runner import as_first_process, run_container
from tests.containers.engine import image

pytestmark = pytest.mark.usefixtures("docker_host")


@pytest.fixture
def client():
    import docker

    client = docker.from_env()
    yield client
    client.close()


@pytest.mark.parametrize("code", [0, 2, 75])
def test_a_containers_exit_code_and_lines_come_back(client, capsys, code):
    command = ["sh", "-c", f"echo said; echo also said >&2; exit {code}"]
    assert run_container(client, image("must-shard"), command, {}) == code
    assert set(capsys.readouterr().out.splitlines()) == {"said", "also said"}


def test_a_missing_image_is_named(client):
    with pytest.raises(ValueError, match=r"localhost:1/nobody:1 is not here .* make images"):
        run_container(client, "localhost:1/nobody:1", ["true"], {})


def test_kfps_command_runs_python_as_the_first_process(client, capsys):
    """The command as kfp 2.17 compiles it: if kfp changes it, this fails instead of losing the signal in silence."""
    from must_components.components import shard

    command = list(shard.pipeline_spec.deployment_spec["executors"]["exec-shard"]["container"]["command"])
    script = as_first_process(command)[2]
    assert " exec python3 " in script
    probe = (
        script.split("exec python3")[0]
        + "exec python3 -c 'import os; print(os.getpid(), os.environ[\"_KFP_RUNTIME\"])'"
    )
    assert run_container(client, image("must-shard"), ["sh", "-ec", probe, "x = 1"], {}) == 0
    assert capsys.readouterr().out.split() == ["1", "true"]
