"""A full log, a task that dies, and the end: nothing else stops, and no client loses a request."""

import asyncio
import io
import logging
import os
import signal
import sys
from types import SimpleNamespace

import pytest

from must.base.console import Console
from must.deploy.serve.serve import follow
from tests.deploy.serve.server import SILENCE, ask, running


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
        server.process.wait(SILENCE)


def test_a_follower_that_dies_ends_readiness():
    async def dies(seconds):
        raise RuntimeError("a bug")

    work = SimpleNamespace(draining=False)
    with pytest.raises(RuntimeError):
        asyncio.run(follow(SimpleNamespace(follow=dies), 1.0, work))
    assert work.draining
