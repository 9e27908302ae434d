"""The stage `must serve`: runs until a signal ends it, then lets the requests that it has be answered."""

from __future__ import annotations

import asyncio
import logging
import resource
import signal
import socket
from contextlib import suppress

import uvicorn

from must.base.text import printable
from must.config.serve import ServeConfig
from must.deploy.serve.connections import SPARE, Room, protocol_within
from must.deploy.serve.http import App
from must.deploy.serve.metrics import Metrics
from must.deploy.serve.models import Models, Source, source_of
from must.deploy.serve.work import Work

logger = logging.getLogger(__name__)

IDLE = 75  # seconds that a connection is kept between two requests: longer than proxies and clients keep theirs
BACKLOG = 2048
FILES = 100  # open ones that are no connections


def serve(config: ServeConfig) -> None:
    """Serves until SIGTERM or SIGINT, and returns when the last request is answered.

    With --registry it starts without a model if there is none yet, says that it is not ready, and waits for one.

    Raises:
        ValueError: --model names no model of ours, an address cannot be listened at, or an event loop runs already.
    """
    check_no_loop()
    source = source_of(config)
    listener = listen(config.host, config.port)
    with listener:
        loop_factory = uvicorn.Config(lambda: None, loop="auto", log_config=None).get_loop_factory()
        with asyncio.Runner(loop_factory=loop_factory) as runner:
            runner.run(run(config, source, listener))


def check_no_loop() -> None:
    """Raises ValueError: this thread runs an event loop, as a notebook's does."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return
    raise ValueError(
        "must.deploy.serve: an event loop runs here, as in a notebook; run `must serve` as a program of its own"
    )


async def run(config: ServeConfig, source: Source, listener: socket.socket) -> None:
    metrics = Metrics()
    models = Models(source, config, metrics)
    work = Work(config, models, metrics)
    if not config.registry:
        await models.refresh()  # a wrong --model ends the program
    following = asyncio.create_task(models.follow(config.poll)) if config.registry else None
    room = Room(room_for(config.connections), metrics.connections_closed.inc)
    metrics.connections.set_function(lambda: len(room.all))
    server = uvicorn.Server(http_config(config, App(work, config.name, lambda: room.is_full), room))
    serving = asyncio.create_task(server._serve([listener]))  # not `serve`, which takes the signals over
    tell(config, listener.getsockname()[1])
    await until_signal(serving)
    work.draining = True
    logger.warning("must serve: no longer ready; answering what there is")
    await asyncio.sleep(0 if serving.done() else config.drain)
    server.should_exit = True
    with suppress(asyncio.CancelledError):
        await serving
    if following:
        following.cancel()
    work.close()


def room_for(connections: int) -> int:
    """As many connections, or fewer where the system lets this process have no more open files."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = connections + SPARE + FILES
    if soft != resource.RLIM_INFINITY and soft < needed:
        soft = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        if soft < needed:
            connections = max(1, soft - SPARE - FILES)
            logger.warning(f"must serve: {connections} connections at a time, by this system's limit of open files")
    return connections


def http_config(config: ServeConfig, app: App, room: Room) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http=protocol_within(config.patience, room),
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        date_header=False,
        proxy_headers=False,
        timeout_keep_alive=IDLE,
        timeout_graceful_shutdown=int(config.patience) + 1,
        backlog=BACKLOG,
    )


def listen(host: str, port: int) -> socket.socket:
    """Raises ValueError: nobody can listen there."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(BACKLOG)  # who hears of the address may use it
    except OSError as error:
        listener.close()
        raise ValueError(f"--host {host} --port {port}: {(error.strerror or str(error)).lower()}") from None
    return listener


async def until_signal(serving: asyncio.Task[None]) -> None:
    """Returns at SIGTERM, SIGINT, or when the server has ended by itself."""
    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        with suppress(ValueError, RuntimeError):  # not in the main thread: the caller stops us otherwise
            loop.add_signal_handler(number, stop.set)
    serving.add_done_callback(lambda task: stop.set())
    await stop.wait()


def tell(config: ServeConfig, port: int) -> None:
    host = f"[{config.host}]" if ":" in config.host else config.host
    logger.info(printable(f"must serve: http://{host}:{port} (model {config.name})"))
