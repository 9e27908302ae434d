"""The server's image: without root, on a read-only root, from a registry that moves, to SIGTERM."""

import json
import time
import urllib.error
import urllib.request

from tests.containers.engine import container, engine, image
from tests.gcs import free_port
from tests.serving.versions import NAME, add_version, promote

WAIT = 600  # seconds


def ask(port, path, data=None):
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", data, timeout=WAIT) as answer:
        return json.loads(answer.read())


def until(condition):
    end = time.monotonic() + WAIT
    while True:
        try:
            if found := condition():
                return found
        except (urllib.error.URLError, ConnectionError):
            pass
        assert time.monotonic() < end
        time.sleep(0.2)


def test_it_serves_follows_latest_and_ends(name, exported, pictures, tmp_path_factory):
    data = tmp_path_factory.mktemp("served")
    for version in ("v1", "v2"):
        add_version(data / "registry", exported, version, data)
    promote(data / "registry", "v1")
    for path in (data, *data.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    command = ("must", "serve", "--registry", "/data/registry", "--name", NAME, "--poll", "0.2", "--host", "0.0.0.0")
    options = (*container(data), "--cap-drop", "ALL", "--network", "host")
    port = free_port()
    ports = ("--port", port, "--drain", "1")
    engine("run", "--detach", "--name", name, *options, image("must-serve"), *command, *ports)
    picture = pictures[0][1]
    found = until(lambda: ask(port, "/classify?top_k=1", picture))
    assert found["version"] == "v1" and found["class"].startswith("v1-")
    promote(data / "registry", "v2")
    (data / "registry" / NAME / "LATEST").chmod(0o644)
    until(lambda: ask(port, "/classify", picture)["version"] == "v2")
    engine("stop", "--time", "30", name)
    state = json.loads(engine("inspect", name).stdout)[0]["State"]
    assert state["ExitCode"] == 0, engine("logs", name).stderr
