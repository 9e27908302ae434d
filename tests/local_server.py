"""A server of HTTP in this process, of which a test writes the answers."""

import json
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Request:
    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes


@dataclass
class Answer:
    """`status` 0: the connection is closed instead. `body`: bytes as they are; of an iterator, its pieces as they come,
    until it ends or raises an OSError; anything else as JSON. `headers` may tell the length."""

    status: int
    body: Any = b""
    headers: Mapping[str, str] | None = None


class LocalServer:
    """`url` is its address, until it is closed."""

    def __init__(self, answer: Callable[[Request], Answer]) -> None:
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True  # or each answer waits 40 ms for an acknowledgement

            def handle_any(self) -> None:
                data = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                answered = answer(Request(self.command, self.path, self.headers, data))
                if not answered.status:
                    self.close_connection = True
                    return
                headers, pieces = {"Content-Type": "application/json", **(answered.headers or {})}, answered.body
                if not isinstance(pieces, Iterator):
                    body = pieces if isinstance(pieces, bytes) else json.dumps(pieces).encode()
                    headers.setdefault("Content-Length", str(len(body)))
                    pieces = [] if self.command == "HEAD" else [body]
                chunked = "Content-Length" not in headers
                self.send_response(answered.status)
                for name, value in (headers | ({"Transfer-Encoding": "chunked"} if chunked else {})).items():
                    self.send_header(name, value)
                self.end_headers()
                for piece in pieces:
                    self.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece) if chunked else piece)
                self.wfile.write(b"0\r\n\r\n" if chunked else b"")

            do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = handle_any  # noqa: N815

            def handle(self) -> None:
                with suppress(OSError):  # a client that went away, or pieces that broke off
                    super().handle()

            def log_message(self, *args: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


@contextmanager
def serving(answer: Callable[[Request], Answer]) -> Iterator[str]:
    """The server's address."""
    with closing(LocalServer(answer)) as server:
        yield server.url
