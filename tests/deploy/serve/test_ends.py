"""A full log, a task that dies, and the end: nothing else stops, and no client loses a request."""

import asyncio
import http.client
import io
import logging
import os
import signal
import subprocess
import sys
import threading
from contextlib import contextmanager
from types import SimpleNamespace

import pytest

from must.base.console import Console
from must.deploy.serve.serve import follow
from tests.deploy.serve.server import SILENCE, ask


@contextmanager
def started(exported, *flags, stderr=subprocess.DEVNULL):
    """(process, port) of a server that the block ends."""
    command = [sys.executable, "-m", "must", "serve", "--model", str(exported[1]), "--port", "0", *flags]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr, text=True)
    try:
        yield process, int(process.stdout.readline().split(":")[3].split()[0])
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def test_a_log_on_a_full_disk_stops_nothing(exported, pictures):
    """From the first line on."""
    with open("/dev/full", "w") as full, started(exported, "--drain", "0", stderr=full) as (process, port):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=SILENCE)
        assert ask(connection, "POST", "/classify", pictures[0][1])[0] == 200
        process.send_signal(signal.SIGTERM)
        assert process.wait(SILENCE) == 0


def test_a_line_that_cannot_be_printed_is_no_error(monkeypatch):
    def text(descriptor):  # without a buffer, whose rest would be written once more when it is closed
        return io.TextIOWrapper(open(descriptor, "wb", buffering=0), write_through=True)

    lines = [logging.LogRecord("must", level, "", 0, "a line", None, None) for level in (logging.INFO, logging.WARNING)]
    with monkeypatch.context() as patch, text("/dev/full") as full:
        patch.setattr(sys, "stderr", full)
        patch.setattr(sys, "stdout", full)
        for line in lines:
            Console().emit(line)
    read, write = os.pipe()
    os.close(read)
    with monkeypatch.context() as patch, text(write) as gone:
        patch.setattr(sys, "stderr", gone)
        patch.setattr(sys, "stdout", gone)
        Console().emit(lines[1])
        with pytest.raises(BrokenPipeError):
            Console().emit(lines[0])


def test_kept_connections_lose_no_request_at_the_end(exported, pictures):
    """Answers say that the connection closes as soon as the server is to end."""
    lost, closed, begun = [], threading.Event(), threading.Event()

    def client(port):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=SILENCE)
        while True:
            try:
                connection.request("POST", "/classify", pictures[0][1])
                answer = connection.getresponse()
                answer.read()
            except Exception as error:
                lost.append(error)
                return
            begun.set()
            if answer.getheader("connection") == "close":
                closed.set()
                return

    with started(exported, "--drain", "3") as (process, port):
        thread = threading.Thread(target=client, args=(port,))
        thread.start()
        assert begun.wait(SILENCE)
        process.send_signal(signal.SIGTERM)
        assert closed.wait(SILENCE) and not lost
        thread.join(SILENCE)
        assert process.wait(SILENCE) == 0


def test_a_follower_that_dies_ends_readiness():
    async def dies(seconds):
        raise RuntimeError("a bug")

    work = SimpleNamespace(draining=False)
    with pytest.raises(RuntimeError):
        asyncio.run(follow(SimpleNamespace(follow=dies), 1.0, work))
    assert work.draining
