"""Fixtures of the container tests. They need docker or podman, and the images: `make test-containers` builds them."""

import os
from pathlib import Path

import pytest

import must
from tests.containers.engine import ENGINE, IMAGES, UID, engine, image, own, run
from tests.once import made_once

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items):
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker(pytest.mark.containers)
            item.add_marker(pytest.mark.timeout(1800))


@pytest.fixture(scope="session", autouse=True)
def images():
    """Skips where there is no engine at all, unless REQUIRE_CONTAINERS says that there has to be one."""
    if not ENGINE:
        (pytest.fail if os.environ.get("REQUIRE_CONTAINERS") else pytest.skip)("neither docker nor podman is here")
    for name in IMAGES:
        assert engine("image", "inspect", image(name), check=False).returncode == 0, f"{image(name)}: make images"


def write_demo(folder):
    """The bundled example, as `must demo` writes it, in a folder that belongs to the containers' user."""
    must.demo(output=folder)
    return own(folder)


@pytest.fixture(scope="session")
def demo(tmp_path_factory):
    """The bundled example; each process of pytest has its own."""
    return write_demo(tmp_path_factory.mktemp("demo"))


@pytest.fixture(scope="session")
def prepared():
    """The example, sharded, with its classifier, made once a run: what training needs. Outputs have their own names."""

    def make(folder):
        write_demo(folder)
        source = ("--source", "/data/images/unlabeled", "--test-source", "/data/images/test", "--labels", "folder")
        run("must-shard", "must", "shard", *source, "--output", "/data/shards", data=folder)
        classes = ("--classes", "/data/classes.yaml", "--model", "/data/model")
        run("must-torch", "must", "classifier", *classes, "--output", "/data/classifier.safetensors", data=folder)
        assert (folder / "shards" / "index.json").stat().st_uid == UID

    return made_once("prepared", make)


@pytest.fixture
def name(request):
    """A container's name; the container is removed at the end."""
    chosen = f"must-{os.getpid()}-{abs(hash(request.node.nodeid)) % 10**6}"
    yield chosen
    engine("rm", "--force", chosen, check=False)
