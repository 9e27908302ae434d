"""The corrected DockerRunner, against the real engine."""

import pytest

from must_pipeline.local_runner import run_container
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
