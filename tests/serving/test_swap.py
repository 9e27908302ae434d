"""The server's life: the next champion, a log that is full, a signal. No request is lost."""

import asyncio
import io
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest

from must.base import storage
from must.base.console import Console
from must.config import ServeConfig
from must.serving.metrics import ServerMetrics
from must.serving.models import Models
from tests.common import until
from tests.serving.server import SILENCE, ask, running
from tests.serving.versions import NAME, add_version, promote


@pytest.mark.slow
def test_no_request_is_lost_while_the_champion_changes(exported, pictures, tmp_path):
    registry, clients, requests = tmp_path / "registry", 8, 6_000
    versions = ["v1", "v2", "v3"]
    for version in versions:
        add_version(registry, exported, version, tmp_path)
    promote(registry, versions[0])
    answers = []

    def send(connection, data):
        for _ in range(requests // clients):
            status, answer = ask(connection, "POST", "/classify?top_k=1", data)
            answers.append((status, answer.get("version"), answer.get("class")))

    with running("--registry", registry, "--name", NAME, "--poll", 0.2) as server, ThreadPoolExecutor(clients) as pool:
        until(lambda: server.ask("GET", "/v2/health/ready")[0] == 200, server.log)
        sending = [pool.submit(send, server.connection(), data) for _, data in pictures[:clients]]
        for number, version in enumerate(versions[1:], 1):
            until(lambda n=number: len(answers) >= n * requests // len(versions), "the load stands still")
            promote(registry, version)
        for future in sending:
            future.result()  # raises what was lost
        until(lambda: server.ask("POST", "/classify", pictures[0][1])[1]["version"] == versions[-1], server.log)
        text = server.ask("GET", "/metrics")[1].decode()
        assert "must_model_swaps_total 2.0" in text and "must_model_swap_failures_total 0.0" in text
    assert len(answers) == requests and {status for status, _, _ in answers} == {200}
    assert {version for _, version, _ in answers} == set(versions)
    assert all(name.startswith(f"{version}-") for _, version, name in answers), "names are of the version that is told"


def test_it_waits_for_the_first_champion_and_a_damaged_one_changes_nothing(bucket_server, exported, pictures, tmp_path):
    registry = f"{bucket_server.uri}/registry"
    with running("--registry", registry, "--name", NAME, "--poll", 0.1) as server:
        assert server.ask("GET", "/v2/health/live")[0] == 200 and server.ask("GET", "/v2/health/ready")[0] == 503
        status, answer = server.ask("POST", "/classify", pictures[0][1])
        assert status == 503 and "no model is loaded yet" in answer["error"]
        (connection := server.connection()).request("POST", "/classify", pictures[0][1])
        assert connection.getresponse().getheader("retry-after") == "1"
        until(lambda: server.said(f"no model --name {NAME} in {registry}; there are no others; waiting"), server.log)
        for version in ("first", "good"):
            add_version(registry, exported, version, tmp_path)
            promote(registry, version)
            until(lambda: server.ask("GET", "/v2/health/ready")[0] == 200, server.log)
            until(lambda v=version: server.ask("POST", "/classify", pictures[0][1])[1]["version"] == v, server.log)

        add_version(registry, exported, "other-bytes", tmp_path, spoil=b"something else than was promoted")
        promote(registry, "other-bytes")
        until(lambda: server.said("is not the file that was promoted"), server.log)
        assert server.ask("POST", "/classify", pictures[0][1])[1]["version"] == "good"
        time.sleep(0.5)
        text = server.ask("GET", "/metrics")[1].decode()
        assert "must_model_swap_failures_total 1.0" in text, "a try, however often it is looked at"
        storage.write_bytes(f"{registry}/{NAME}/LATEST", b"{")
        until(lambda: server.said("LATEST is damaged"), server.log)
        assert server.ask("POST", "/classify", pictures[0][1])[1]["version"] == "good"
        assert server.ask("GET", "/v2/health/ready")[0] == 200


@contextmanager
def models_of(registry):
    """The function that lets the server's models look at the registry once, and its downloads so far."""
    downloads, copy = [], storage.copy

    def copy_and_note(uri, file, **options):
        downloads.append(uri)
        copy(uri, file, **options)

    with asyncio.Runner() as runner, pytest.MonkeyPatch.context() as patch:
        patch.setattr(storage, "copy", copy_and_note)
        models = Models(ServeConfig(registry=str(registry), name=NAME), ServerMetrics())
        yield models, lambda: runner.run(models.refresh()), downloads
        if models.current:
            models.current.queue.put(None)  # its thread ends


def test_a_champion_that_cannot_be_served_is_downloaded_once(exported, tmp_path, monkeypatch):
    registry = tmp_path / "registry"
    file = registry / NAME / "other" / "onnx" / "model.onnx"
    add_version(registry, exported, "good", tmp_path)
    add_version(registry, exported, "other", tmp_path)
    whole = file.read_bytes()
    promote(registry, "good")
    with models_of(registry) as (models, refresh, downloads):

        def fail(downloaded):
            with pytest.raises(ValueError, match="is not the file that was promoted: its checksum differs"):
                refresh()
            assert len(downloads) == downloaded and models.current.version == "good"

        refresh()
        promote(registry, "other")
        for number, damage in enumerate((b"something else than was promoted", b"another damage"), 2):
            file.write_bytes(damage)
            for _ in range(3):
                fail(downloaded=number)
        monkeypatch.setattr("must.serving.models.DAMAGED_PAUSE", 0)  # after a while
        fail(downloaded=4)
        monkeypatch.undo()
        file.write_bytes(whole)
        refresh()
        assert models.current.version == "other"


def test_a_version_whose_onnx_file_is_of_another_model_is_not_served(exported, tmp_path):
    registry = tmp_path / "registry"
    add_version(registry, exported, "v1", tmp_path, weights=b"of another model")
    promote(registry, "v1")
    with models_of(registry) as (models, refresh, downloads):
        for _ in range(2):
            with pytest.raises(ValueError, match="was exported from another model than the version's bundle"):
                refresh()
        assert models.current is None and len(downloads) == 1


def test_a_model_that_was_replaced_ends(exported, tmp_path):
    registry, before = tmp_path / "registry", {*threading.enumerate()}
    with models_of(registry) as (models, refresh, _):
        for version in ("v1", "v2", "v3"):
            add_version(registry, exported, version, tmp_path)
            promote(registry, version)
            refresh()
        until(lambda: sum(thread.name == "forward" for thread in {*threading.enumerate()} - before) == 1)
        text = models.metrics.text().decode()
        assert text.count("must_model_info{") == 1 and 'must_model_info{version="v3"} 1.0' in text


def test_a_name_that_is_not_in_the_registry_is_told_those_that_are(exported, tmp_path):
    add_version(tmp_path, exported, "v1", tmp_path)
    promote(tmp_path, "v1")
    with running("--registry", tmp_path, "--name", "typo", "--poll", 0.1) as server:
        until(lambda: server.said(f"no model --name typo in {tmp_path}; there are {NAME}; waiting"), server.log)
        assert server.ask("GET", "/v2/health/ready")[0] == 503


def test_requests_that_are_under_way_at_the_end_are_answered(exported, pictures):
    with running("--model", exported[1], "--name", NAME) as server:
        data = pictures[0][1]
        connection = server.connection()
        connection.putrequest("POST", "/classify")
        connection.putheader("content-length", str(len(data)))
        connection.endheaders(data[:100])  # half of it
        for _ in range(2):  # answered after what came before it was read
            assert server.ask("GET", "/v2/health/live")[0] == 200
        server.process.terminate()
        until(lambda: server.said("not ready; answering"), server.log)
        connection.send(data[100:])
        answer = connection.getresponse()
        assert answer.status == 200 and b'"class"' in answer.read()
        server.process.wait(SILENCE)


KILLED_WHILE_LOADING = """
import os, signal, sys
from must.config import ServeConfig
from must.serving import models
models.OnnxClassifier = lambda *values, **more: os.kill(os.getpid(), signal.SIGKILL)
models.Models(ServeConfig(registry=sys.argv[1], name=sys.argv[2]), None).load("")
"""


def test_a_server_that_is_killed_while_it_loads_leaves_no_model_behind(exported, tmp_path):
    """Out of memory, say: a pod's /tmp stays from one container to the next, and would fill up."""
    add_version(tmp_path / "registry", exported, "v1", tmp_path)
    promote(tmp_path / "registry", "v1")
    (scratch := tmp_path / "scratch").mkdir()
    command = [sys.executable, "-c", KILLED_WHILE_LOADING, str(tmp_path / "registry"), NAME]
    killed = subprocess.run(command, env=os.environ | {"TMPDIR": str(scratch)}, check=False)
    assert killed.returncode == -9 and not list(scratch.iterdir())


def test_a_log_on_a_full_disk_stops_nothing(exported, pictures):
    """From the first line on."""
    with open("/dev/full", "w") as full, running("--model", exported[1], stderr=full) as server:
        assert server.ask("POST", "/classify", pictures[0][1])[0] == 200


def test_of_closed_pipes_only_standard_output_ends_the_program(monkeypatch):
    read, write = os.pipe()
    os.close(read)
    with io.TextIOWrapper(open(write, "wb", buffering=0), write_through=True) as gone, monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", gone)
        patch.setattr(sys, "stdout", gone)
        Console().emit(logging.LogRecord("must", logging.WARNING, "", 0, "a line", None, None))
        with pytest.raises(BrokenPipeError):
            Console().emit(logging.LogRecord("must", logging.INFO, "", 0, "a line", None, None))


def test_kept_connections_lose_no_request_at_the_end(exported, pictures):
    """Answers say that the connection closes as soon as the server is to end."""
    with running("--model", exported[1], drain=3) as server:
        connection, header = server.connection(), None
        assert ask(connection, "POST", "/classify", pictures[0][1])[0] == 200
        server.process.send_signal(signal.SIGTERM)
        while header != "close":
            connection.request("POST", "/classify", pictures[0][1])
            answer = connection.getresponse()
            assert answer.status == 200 and answer.read()
            header = answer.getheader("connection")
        assert server.ask("GET", "/v2/health/ready")[0] == 503, "new connections are answered: it is not yet the end"
        server.process.wait(SILENCE)
