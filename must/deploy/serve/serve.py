"""The stage `must serve`: runs until a signal, then completes the requests that it has."""

import asyncio
import logging
import resource
import socket

import uvicorn

from must.base.console import TO_STDERR
from must.base.text import printable
from must.config.predict import ServeConfig
from must.deploy.serve.http import make_app
from must.deploy.serve.metrics import Metrics
from must.deploy.serve.models import Champion, Models, OneModel
from must.deploy.serve.server import check_no_loop, format_url, listen, serve_until_signal
from must.deploy.serve.work import Work

logger = logging.getLogger(__name__)

IDLE = 75  # seconds that an idle connection stays open: longer than in proxies and clients
FILES = 65_536  # open files and connections, if the system allows so many


def serve(config: ServeConfig) -> None:
    """Serves until SIGTERM or SIGINT; returns when the last request is answered.

    With --registry it starts also without a champion, is not ready then, and waits for the first one.
    Raises ValueError: no model of `must export` at --model, the address cannot be bound, or an event loop runs already.
    """
    check_no_loop("must serve")
    source = (Champion if config.registry else OneModel)(config)
    listener = listen(config.host, config.port)
    with listener:
        loop_factory = uvicorn.Config(lambda: None, loop="auto", log_config=None).get_loop_factory()
        with asyncio.Runner(loop_factory=loop_factory) as runner:
            runner.run(serve_async(config, source, listener))


async def serve_async(config: ServeConfig, source: OneModel | Champion, listener: socket.socket) -> None:
    metrics = Metrics()
    models = Models(source, config, metrics)
    work = Work(config, models, metrics)
    if not config.registry:
        await models.refresh()  # a wrong --model ends the program
    following = asyncio.create_task(follow(models, config.poll, work)) if config.registry else None
    allow_files()

    async def drain(ended: bool) -> None:
        work.draining = True
        logger.warning("must serve: not ready; answering the remaining requests")
        await asyncio.sleep(0 if ended else config.drain)

    url = format_url(config.host, listener)
    logger.info(printable(f"must serve: {url} (model {config.name})"))
    logger.info(printable(f"next: curl --data-binary @photo.jpg {url}/classify"), extra=TO_STDERR)
    await serve_until_signal(
        make_app(work, config.name),
        listener,
        config.patience,
        drain,
        date_header=False,
        timeout_keep_alive=IDLE,
        timeout_graceful_shutdown=int(config.patience) + 1,
    )
    if following:
        following.cancel()
    work.decoders.close()


async def follow(models: Models, seconds: float, work: Work) -> None:
    """Looks for newer models. When it ends, the server is not ready any more."""
    try:
        await models.follow(seconds)
    finally:
        work.draining = True


def allow_files() -> None:
    """Increases this process's limit of open files."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = FILES if hard == resource.RLIM_INFINITY else min(FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
