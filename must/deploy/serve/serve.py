"""The stage `must serve`: runs until a signal ends it, then lets the requests that it has be answered."""

import asyncio
import logging
import resource
import socket

import uvicorn

from must.base.text import printable
from must.config.serve import ServeConfig
from must.deploy.serve.connections import SPARE, Room
from must.deploy.serve.http import App
from must.deploy.serve.metrics import Metrics
from must.deploy.serve.models import Champion, Models, OneModel, Source
from must.deploy.serve.server import address, check_no_loop, listen, serve_until_signal
from must.deploy.serve.work import Work

logger = logging.getLogger(__name__)

IDLE = 75  # seconds that a connection is kept between two requests: longer than proxies and clients keep theirs
FILES = 100  # open ones that are no connections


def serve(config: ServeConfig) -> None:
    """Serves until SIGTERM or SIGINT, and returns when the last request is answered.

    With --registry it starts without a model if there is none yet, says that it is not ready, and waits for one.

    Raises:
        ValueError: --model names no model of ours, an address cannot be listened at, or an event loop runs already.
    """
    check_no_loop("must serve")
    source = (Champion if config.registry else OneModel)(config)
    listener = listen(config.host, config.port)
    with listener:
        loop_factory = uvicorn.Config(lambda: None, loop="auto", log_config=None).get_loop_factory()
        with asyncio.Runner(loop_factory=loop_factory) as runner:
            runner.run(run(config, source, listener))


async def run(config: ServeConfig, source: Source, listener: socket.socket) -> None:
    metrics = Metrics()
    models = Models(source, config, metrics)
    work = Work(config, models, metrics)
    if not config.registry:
        await models.refresh()  # a wrong --model ends the program
    following = asyncio.create_task(models.follow(config.poll)) if config.registry else None
    room = Room(room_for(config.connections), metrics.connections_closed.inc)
    metrics.connections.set_function(lambda: len(room.all))

    async def drain(ended: bool) -> None:
        work.draining = True
        logger.warning("must serve: no longer ready; answering what there is")
        await asyncio.sleep(0 if ended else config.drain)

    logger.info(printable(f"must serve: {address(config.host, listener)} (model {config.name})"))
    await serve_until_signal(
        App(work, config.name, lambda: room.is_full),
        listener,
        room,
        config.patience,
        drain,
        date_header=False,
        timeout_keep_alive=IDLE,
        timeout_graceful_shutdown=int(config.patience) + 1,
    )
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
