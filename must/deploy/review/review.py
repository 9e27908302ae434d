"""The stage `must review`: what is asked is worked out once, then a page is served until a signal ends it."""

import asyncio
import getpass
import logging
import secrets
import socket
from dataclasses import replace
from pathlib import Path

from must.base import storage
from must.base.files import CLASSIFIER_FILE, RECORD_FILE, WEIGHTS_FILE
from must.base.lock import Kind, locked
from must.base.parameters import require
from must.base.progress import loading
from must.base.text import printable, printable_page
from must.config.review import ReviewConfig
from must.data.loading.reader import open_reader
from must.deploy.review.http import App
from must.deploy.review.page import self_contained
from must.deploy.review.pictures import Pictures
from must.deploy.review.session import Session, in_words
from must.deploy.serve.connections import Room
from must.deploy.serve.server import address, check_no_loop, listen, serve_until_signal
from must.method.answers.doubts import RELABELLED, Doubts, save_relabelled
from must.method.answers.questions import fingerprint, whole_of
from must.method.answers.sampling import SamplingPlan

logger = logging.getLogger(__name__)

REVIEW = Kind("must review", "--output", ".review.lock")
CONNECTIONS = 64  # of all browsers together
PATIENCE = 30.0  # seconds that a browser has for a request's head, and for taking an answer


def review(config: ReviewConfig) -> None:
    """Serves until SIGINT or SIGTERM, or writes --page. Answers are in OUTPUT/answers.jsonl; going on loses none.

    Raises:
        ValueError: no such model, shards of another revision, another `must review` at work there, an address that
            cannot be listened at.
    """
    config = placed(config)
    if not config.page:
        check_no_loop("must review")
    folder = storage.local(config.output)
    folder.mkdir(parents=True, exist_ok=True)
    with locked(str(folder), REVIEW):
        plan = questions_at(config)
        reader = open_reader(config.shards, config.split, config.cache, config.cache_gb, sha256=plan.index_sha256)
        session = Session(plan, str(folder), config.who or login())
        pictures = Pictures(reader)
        if config.page:
            page, count = self_contained(session, pictures, config.pictures)
            storage.write_bytes(config.page, page)
            said = f"{config.page}: {count:,} pictures, {len(page) / 1e6:.1f} MB; it saves answers.jsonl"
            logger.info(printable(said))
        else:
            with listen(config.host, config.port) as listener, asyncio.Runner() as runner:
                runner.run(run(config, session, pictures, listener))


def placed(config: ReviewConfig) -> ReviewConfig:
    """With the places of a folder that `must adapt` made. Raises ValueError: it made none there."""
    if not config.work:
        return replace(config, model=whole_of(config.model)) if config.mode == "compare" else config
    work = Path(config.work)
    require((work / RECORD_FILE).is_file(), f"{config.work}: is no folder that `must adapt` made")
    inside = [str(work / name) for name in ("model", CLASSIFIER_FILE, "shards", "review")]
    model, baseline, shards, output = inside
    if config.mode == "compare":
        model = whole_of(model)
    return replace(config, work="", model=model, baseline=baseline, shards=shards, output=output)


def questions_at(config: ReviewConfig) -> SamplingPlan | Doubts:
    """Those in the folder, or new ones. Raises ValueError: they are about another model, or about other images."""
    kind: type[SamplingPlan | Doubts] = Doubts if config.mode == "doubtful" else SamplingPlan
    if not storage.exists(storage.join(config.output, kind.FILE)):
        loading("review")
        from must.deploy.review.prepare import prepare, prepare_doubts  # imports torch

        found = prepare_doubts(config) if kind is Doubts else prepare(config)
        found.save(config.output)
        return found
    found = kind.load(config.output, "--output")
    weights = fingerprint(storage.read_bytes(storage.join(config.model, WEIGHTS_FILE)))
    require(
        weights == found.model_sha256,
        f"--output {config.output}: its {kind.FILE} is about another model; delete that file to ask about this one: "
        "answers stay good",
    )
    return found


async def run(config: ReviewConfig, session: Session, pictures: Pictures, listener: socket.socket) -> None:
    token = secrets.token_urlsafe(18)
    known = len(session.answers)
    logger.info(printable(f"must review: {address(config.host, listener)}/{token}/"))
    logger.info(printable(f"answers: {session.path} ({known:,} so far); Ctrl-C ends, the same command goes on"))
    app = App(session, pictures, token)
    await serve_until_signal(app, listener, Room(CONNECTIONS), PATIENCE, timeout_graceful_shutdown=5)
    logger.info(printable_page(closing(config, session)))


def closing(config: ReviewConfig, session: Session) -> str:
    if isinstance(session.plan, Doubts):
        count = save_relabelled(session.plan, session.answers, config.output)
        file = storage.join(config.output, RELABELLED)
        return f"{len(session.answers):,} answers. {count:,} pictures are called otherwise: {file}"
    assert session.verdict is not None
    found = f"{len(session.answers):,} answers. {in_words(session.verdict, session.plan)}"
    command = f"must select --model {config.model} --baseline {config.baseline} --shards {config.shards}"
    return f"{found}\nnext: {command} --answers {config.output} --output selected/"


def login() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # no entry for this user, as in a container
        return ""
