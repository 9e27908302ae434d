"""The stage `must serve`, which runs until a signal; also runs the server of `must review`."""

import asyncio
import logging
import resource
import signal
import socket
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from must.base.console import TO_STDERR
from must.base.errors import UserError
from must.base.text import make_printable
from must.config.deploy import ServeConfig
from must.serving.http import CLIENT_TIMEOUT, Api, make_app
from must.serving.metrics import ServerMetrics
from must.serving.models import Models

logger = logging.getLogger(__name__)

IDLE = 75  # seconds without a request, or for its head, after which a connection ends: longer than proxies keep one
FILES = 65_536  # open files and connections, if the system allows so many
BACKLOG = 128  # connections that wait to be accepted, at most
CONNECTIONS = 4096  # at a time; requests of more get 503
LONGEST_HEAD = 64 * 1024  # bytes of a request line with its headers, or of the framing between two pieces of a body


def serve(config: ServeConfig) -> None:
    """Serves until SIGTERM or SIGINT; returns when the last request is answered.

    With --registry it starts also without a champion, is not ready then, and waits for the first one."""
    check_no_loop("must serve")
    with listen(config.host, config.port) as listener:
        loop_factory = uvicorn.Config(lambda: None, loop="auto", log_config=None).get_loop_factory()
        with asyncio.Runner(loop_factory=loop_factory) as runner:
            runner.run(serve_async(config, listener))


async def serve_async(config: ServeConfig, listener: socket.socket) -> None:
    metrics = ServerMetrics()
    models = Models(config, metrics)
    api = Api(config, models, metrics)
    if not config.registry:
        await models.refresh()  # a wrong --model ends the program
    following = asyncio.create_task(models.follow()) if config.registry else None
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = FILES if hard == resource.RLIM_INFINITY else min(FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))

    async def drain() -> None:
        api.draining = True
        logger.warning("must serve: not ready; answering the remaining requests")
        await asyncio.sleep(config.drain)

    url = format_url(config.host, listener)
    logger.info(make_printable(f"must serve: {url} (model {config.name})"))
    logger.info(make_printable(f"next: curl --data-binary @photo.jpg {url}/classify"), extra=TO_STDERR)
    await serve_until_signal(
        make_app(api),
        listener,
        drain,
        date_header=False,
        limit_concurrency=CONNECTIONS,
        timeout_keep_alive=IDLE,
        timeout_graceful_shutdown=int(CLIENT_TIMEOUT) + 1,
    )
    api.decoders.shutdown(wait=False, cancel_futures=True)
    if following:
        following.cancel()


class Bounded(HttpToolsProtocol):
    """uvicorn's connections with limits that it does not have: on the time until a request begins, and on the bytes of
    its head."""

    silence: asyncio.TimerHandle | None = None  # ends a connection on which no request begins
    unread = 0  # bytes since the end of the last head, or the last piece of a body

    def wait_for_head(self, begin: bool = True) -> None:
        """uvicorn itself limits the time between two requests only."""
        if self.silence:
            self.silence.cancel()
        self.silence = self.loop.call_later(self.timeout_keep_alive, self.transport.close) if begin else None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.wait_for_head()

    def connection_lost(self, error: Exception | None) -> None:
        super().connection_lost(error)
        self.wait_for_head(False)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.wait_for_head()

    def on_headers_complete(self) -> None:
        self.wait_for_head(False)
        self.unread = 0
        super().on_headers_complete()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.cycle.response_complete:  # no request waits; the rest of the body of a refused one may come
            self.wait_for_head()

    def data_received(self, data: bytes) -> None:
        self.unread += len(data)
        super().data_received(data)
        if self.unread > LONGEST_HEAD:
            self.transport.close()

    def on_body(self, body: bytes) -> None:
        self.unread = 0
        super().on_body(body)


class Server(uvicorn.Server):
    """Handles no signals."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def check_no_loop(command: str) -> None:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return
    raise UserError(f"{command}: an event loop runs here, as in a notebook; run `{command}` as a program of its own")


def listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    both = family == socket.AF_INET6 and socket.has_dualstack_ipv6()  # "::" also takes connections of IPv4
    try:
        listener = socket.create_server((host, port), family=family, backlog=BACKLOG, dualstack_ipv6=both)
    except OSError as error:
        reason = str(error.strerror).partition(" (while")[0].lower()  # create_server adds the address again
        raise UserError(f"--host {host} --port {port}: {reason}") from None
    # Its connections inherit it; asyncio sets it only for sockets made with the protocol's number. Without it the
    # second packet of an answer waits for the client's delayed ACK: 40 ms a request on a connection that is kept.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


def format_url(host: str, listener: socket.socket) -> str:
    return f"http://{f'[{host}]' if ':' in host else host}:{listener.getsockname()[1]}"


async def serve_until_signal(
    app: Any, listener: socket.socket, drain: Callable[[], Awaitable[None]] | None = None, **settings: Any
) -> None:
    """Serves an ASGI application until SIGTERM, SIGINT, or until the server ends by itself; returns when the last
    request is answered. `drain`: called after the signal, while requests are still accepted; `settings`: of uvicorn."""
    server = Server(
        uvicorn.Config(
            app,
            http=Bounded,
            ws="none",
            lifespan="off",
            log_config=None,
            log_level="error",  # no log line for each invalid request
            access_log=False,
            server_header=False,
            proxy_headers=False,
            backlog=BACKLOG,
            **settings,
        )
    )
    serving = asyncio.create_task(server.serve([listener]))
    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        with suppress(ValueError, RuntimeError):  # not in the main thread: the caller ends the server
            loop.add_signal_handler(number, stop.set)
    serving.add_done_callback(lambda task: stop.set())
    await stop.wait()
    if drain and not serving.done():
        await drain()
    server.should_exit = True
    with suppress(asyncio.CancelledError):
        await serving
