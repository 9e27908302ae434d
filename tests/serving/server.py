"""A server of its own process, as people start it, and small clients."""

import http.client
import json
import re
import signal
import subprocess
import sys
import threading
from contextlib import contextmanager
from typing import NamedTuple

SILENCE = 120  # seconds in which a server that works has long answered, on a machine that is busy with other things


class Address(NamedTuple):
    port: int
    process: subprocess.Popen
    log: list  # lines of stderr so far

    def ask(self, method, path, body=None, **headers):
        """(status, JSON or text) over a connection of its own."""
        return ask(self.connection(), method, path, body, **headers)

    def connection(self):
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=SILENCE)

    def said(self, text):
        return any(text in line for line in self.log)


def ask(connection, method, path, body=None, **headers):
    connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
    answer = connection.getresponse()
    data = answer.read()
    kind = answer.headers["content-type"] or ""
    return answer.status, json.loads(data) if kind.startswith("application/json") else data


@contextmanager
def running(*flags, drain=0, stderr=subprocess.PIPE):
    """`must serve` with these flags on a free port, ended with SIGTERM unless the test did so; it must exit with 0."""
    command = [sys.executable, "-m", "must", "serve", "--port", "0", "--drain", str(drain), *map(str, flags)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr, text=True)
    log = []
    reader = threading.Thread(target=lambda: [log.append(line) for line in process.stderr or ()], daemon=True)
    reader.start()
    try:
        line = process.stdout.readline()
        found = re.search(r"http://127.0.0.1:(\d+) ", line)
        assert found, (line, log, process.poll())
        yield Address(int(found[1]), process, log)
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        assert process.wait(SILENCE) == 0, log
    finally:
        process.kill()
        reader.join(SILENCE)
        process.communicate()
