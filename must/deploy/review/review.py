"""The stage `must review`: what is asked is computed once, then a page is served until a signal ends it."""

import asyncio
import logging
import os
import secrets
import socket
from contextlib import closing

from must.base import storage
from must.base.files import WEIGHTS_FILE
from must.base.lock import Kind, locked
from must.base.parameters import require
from must.base.progress import loading
from must.base.text import cell, csv_of, printable, printable_page
from must.config.review import ReviewConfig
from must.data.loading.reader import open_reader
from must.deploy.review.http import App
from must.deploy.review.page import self_contained
from must.deploy.review.pictures import Pictures
from must.deploy.review.session import Session
from must.deploy.serve.server import address, check_no_loop, listen, serve_until_signal
from must.method.answers.review import FILE, MODEL, RANDOM, Review, fingerprint

logger = logging.getLogger(__name__)

REVIEW = Kind("must review", "--output", ".review.lock")
RELABELLED = "relabelled.csv"
CONNECTIONS = 64  # of all browsers together
PATIENCE = 30.0  # seconds that a browser has for a request's head, and for taking an answer


def review(config: ReviewConfig) -> None:
    """Serves until SIGINT or SIGTERM, or writes --page. Answers are in OUTPUT/answers.jsonl; going on loses none.

    Raises:
        ValueError: no such model, shards of another revision, another `must review` at work there, an address that
            cannot be listened at.
    """
    if not config.page:
        check_no_loop("must review")
    folder = storage.local(config.output)
    folder.mkdir(parents=True, exist_ok=True)
    with locked(str(folder), REVIEW):
        about = review_at(config)
        reader = open_reader(config.shards, config.split, config.cache, config.cache_gb, sha256=about.index_sha256)
        who, pictures = config.who or os.environ.get("USER", ""), Pictures(reader)
        if config.page:
            page, count = self_contained(Session(about, str(folder), who), pictures, config.pictures)
            storage.write_bytes(config.page, page)
            said = f"{config.page}: {count:,} pictures, {len(page) / 1e6:.1f} MB; it saves answers.jsonl"
            logger.info(printable(said))
            return
        from must.deploy.review.teaching import Images, Teaching  # imports torch

        with listen(config.host, config.port) as listener, closing(Teaching(Images.load(str(folder)))) as teaching:
            session = Session(about, str(folder), who, teaching)
            asyncio.run(run(config, session, pictures, listener))


def review_at(config: ReviewConfig) -> Review:
    """The one in the folder, or a new one. Raises ValueError: it is about another model, or in another order."""
    if not storage.exists(storage.join(config.output, FILE)):
        loading("review")
        from must.deploy.review.prepare import prepare  # imports torch

        found, images = prepare(config)
        images.save(config.output)
        found.save(config.output)  # the last: it says that both are there
        return found
    found = Review.load(config.output, "--output")
    weights = fingerprint(storage.read_bytes(storage.join(config.model, WEIGHTS_FILE)))
    other = "about another model" if weights != found.model_sha256 else f"in the order {found.order}"
    require(
        weights == found.model_sha256 and config.order == found.order,
        f"--output {config.output}: its {FILE} is {other}; delete that file for a new one: answers stay good",
    )
    return found


async def run(config: ReviewConfig, session: Session, pictures: Pictures, listener: socket.socket) -> None:
    token = secrets.token_urlsafe(18)
    known = len(session.answers)
    logger.info(printable(f"must review: {address(config.host, listener)}/{token}/"))
    logger.info(printable(f"answers: {session.path} ({known:,} so far); Ctrl-C ends, the same command goes on"))
    app = App(session, pictures, token)
    await serve_until_signal(app, listener, PATIENCE, limit_concurrency=CONNECTIONS, timeout_graceful_shutdown=5)
    logger.info(printable_page(what_next(config, session)))


def what_next(config: ReviewConfig, session: Session) -> str:
    """What the answers say, and what to do with them. Writes relabelled.csv anew."""
    rows = [["image", "model", "label", "who", "when", "sha256"]]
    for picture, answer in session.review.relabelled(session.answers):
        model = session.review.classes[picture.classes[MODEL]]
        texts = picture.image, model, answer.label or "", answer.who, answer.when
        rows.append([*map(cell, texts), picture.sha256])
    file = storage.join(config.output, RELABELLED)
    storage.write_bytes(file, csv_of(rows))
    lines = [session.text(), f"{len(rows) - 1:,} pictures to which people give another class than the model: {file}"]
    places = f"--model {config.model} --shards {config.shards} --answers {config.output}"
    if session.review.order == RANDOM:
        lines.append(f"next: must select {places} --baseline {config.baseline} --output selected/")
    lines.append(f"next: must refine {places} --classifier {config.baseline} --output labels/")
    return "\n".join(lines)
