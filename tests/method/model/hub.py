"""A hub on this machine: the part of Hugging Face's protocol that fetching a file needs, and its ways to fail."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "1" * 40


class Hub(ThreadingHTTPServer):
    """Serves TEAM/NAME/FILE below a folder. `asked` holds the requests; `fault` is a way to fail, see `Handler`."""

    daemon_threads = True

    def __init__(self, folder: Path, fault: str = "", handler: type[Handler] | None = None) -> None:
        super().__init__(("127.0.0.1", 0), handler or Handler)
        self.folder, self.fault, self.asked, self.ended = folder, fault, list[str](), threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.answer()

    def answer(self) -> None:
        self.server.asked.append(f"{self.command} {self.path}")
        if self.server.fault == "hangs":
            self.server.ended.wait(120)
        if self.server.fault.isdigit():
            return self.reply(int(self.server.fault), b"", {})
        repository, _, name = self.path.partition("?")[0].partition("/resolve/main/")
        file = self.server.folder / repository.strip("/") / name
        if not file.is_file():
            kind = "EntryNotFound" if file.parent.is_dir() else "RepoNotFound"
            return self.reply(404, b"", {"X-Error-Code": kind, "X-Repo-Commit": COMMIT})
        data = file.read_bytes()
        headers = {"ETag": f'"{hashlib.sha256(data).hexdigest()}"', "X-Repo-Commit": COMMIT}
        if self.server.fault == "cuts" and self.command == "GET":
            data = data[: len(data) // 2]
        return self.reply(200, data, headers)

    def reply(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body)), "Connection": "close"}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def serving(folder: Path, fault: str = "") -> Iterator[Hub]:
    with serve(Hub(folder, fault)) as hub:
        yield hub


@contextmanager
def serve(hub: Hub) -> Iterator[Hub]:
    thread = threading.Thread(target=hub.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.ended.set()
        hub.shutdown()
        hub.server_close()
        thread.join()
