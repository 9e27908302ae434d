"""A server from its address to the signal that ends it: what `must serve` and `must review` have in common."""

import asyncio
import signal
import socket
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from must.base.errors import UserError

BACKLOG = 128  # as many connections are accepted before anything else is done
LONGEST_HEAD = 64 * 1024  # bytes of a request line with its headers, or of a chunked body's framing in a row
MOST_HEADERS = 100
MOST_WAITING = 16  # requests that a connection sends before the first of them is answered
CHUNKS, A_CHUNK = 1000, 100  # of a body, and the bytes that each further one has on average


class Bounded(HttpToolsProtocol):
    """uvicorn's connections, with an end to what costs much and is sent for little: 400, or closed at once."""

    unread = 0  # bytes since the last head's end, or the last piece of a body
    chunks = body = 0  # of this request

    def data_received(self, data: bytes) -> None:
        self.unread += len(data)
        super().data_received(data)
        if self.unread > LONGEST_HEAD:
            self.transport.close()

    def on_header(self, name: bytes, value: bytes) -> None:
        bounded(len(self.headers), MOST_HEADERS)
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        bounded(len(self.pipeline), MOST_WAITING)
        self.unread = self.chunks = self.body = 0
        super().on_headers_complete()

    def on_chunk_header(self) -> None:
        self.chunks += 1
        bounded(self.chunks, CHUNKS + self.body // A_CHUNK)

    def on_body(self, body: bytes) -> None:
        self.unread = 0
        self.body += len(body)
        super().on_body(body)


def bounded(number: int, most: int) -> None:
    """Raises ValueError, on which httptools reads no further."""
    if number > most:
        raise ValueError


class Server(uvicorn.Server):
    """Handles no signals."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def check_no_loop(command: str) -> None:
    """Raises ValueError: this thread runs an event loop, as a notebook's does."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return
    raise UserError(f"{command}: an event loop runs here, as in a notebook; run `{command}` as a program of its own")


def listen(host: str, port: int) -> socket.socket:
    """Raises ValueError: the address cannot be bound."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(BACKLOG)  # who hears of the address may use it
    except OSError as error:
        listener.close()
        raise UserError(f"--host {host} --port {port}: {(error.strerror or str(error)).lower()}") from None
    return listener


def url_of(host: str, listener: socket.socket) -> str:
    return f"http://{f'[{host}]' if ':' in host else host}:{listener.getsockname()[1]}"


async def serve_until_signal(
    app: Any,
    listener: socket.socket,
    patience: float,
    drain: Callable[[bool], Awaitable[None]] | None = None,
    **settings: Any,
) -> None:
    """Serves until SIGTERM, SIGINT, or until the server ends by itself; returns when the last request is answered.

    Args:
        app: an ASGI application.
        patience: seconds that a connection is open between two requests, unless `settings` say it.
        drain: called when a signal came, while requests are still taken; with whether the server has ended by itself.
        settings: uvicorn's.
    """
    server = Server(
        uvicorn.Config(
            app,
            http=Bounded,
            ws="none",
            lifespan="off",
            log_config=None,
            log_level="error",  # not a line for each request that is none
            access_log=False,
            server_header=False,
            proxy_headers=False,
            backlog=BACKLOG,
            **{"timeout_keep_alive": int(patience), **settings},
        )
    )
    serving = asyncio.create_task(server.serve([listener]))
    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        with suppress(ValueError, RuntimeError):  # not in the main thread: the caller stops us otherwise
            loop.add_signal_handler(number, stop.set)
    serving.add_done_callback(lambda task: stop.set())
    await stop.wait()
    if drain:
        await drain(serving.done())
    server.should_exit = True
    with suppress(asyncio.CancelledError):
        await serving
