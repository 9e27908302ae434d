"""The stage `must review`: what is asked is worked out once, then a page is served until a signal ends it."""

from __future__ import annotations

import asyncio
import getpass
import logging
import secrets
from dataclasses import replace
from pathlib import Path
from typing import Any

import uvicorn

from must.base import storage
from must.base.lock import Kind, locked
from must.base.parameters import require
from must.base.text import printable, printable_page
from must.config.review import ReviewConfig
from must.data.loading.reader import open_reader
from must.deploy.review.http import App
from must.deploy.review.page import self_contained
from must.deploy.review.pictures import Pictures
from must.deploy.review.session import Session, in_words
from must.deploy.serve.connections import Room, protocol_within
from must.deploy.serve.serve import check_no_loop, listen, until_signal
from must.method.answers import doubts
from must.method.answers.doubts import Doubts
from must.method.answers.plan import FILE, Plan, fingerprint, load_plan, save_plan, whole_of

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
        check_no_loop()
    folder = storage.local(config.output)
    folder.mkdir(parents=True, exist_ok=True)
    with locked(str(folder), REVIEW):
        plan = doubts_at(config) if config.mode == "doubtful" else plan_at(config)
        reader = open_reader(config.shards, config.split, config.cache, config.cache_gb, sha256=plan.index_sha256)
        session = Session(plan, str(folder), config.who or login())
        pictures = Pictures(reader)
        if config.page:
            write_page(config, session, pictures)
        else:
            with listen(config.host, config.port) as listener, asyncio.Runner() as runner:
                runner.run(run(config, session, pictures, listener))


def placed(config: ReviewConfig) -> ReviewConfig:
    """With the places of a folder that `must adapt` made. Raises ValueError: it made none there."""
    if not config.work:
        return replace(config, model=whole_of(config.model)) if config.mode == "compare" else config
    work = Path(config.work)
    require((work / "adapt.json").is_file(), f"{config.work}: is no folder that `must adapt` made")
    inside = [str(work / name) for name in ("model", "classifier.safetensors", "shards", "review")]
    model, baseline, shards, output = inside
    if config.mode == "compare":
        model = whole_of(model)
    return replace(config, work="", model=model, baseline=baseline, shards=shards, output=output)


def plan_at(config: ReviewConfig) -> Plan:
    """The plan in the folder, or a new one. Raises ValueError: it is about another model, or about other images."""
    if not storage.exists(storage.join(config.output, FILE)):
        from must.deploy.review.prepare import prepare  # imports torch

        plan = prepare(config)
        save_plan(plan, config.output)
        return plan
    plan = load_plan(config.output, "--output")
    check_model(config, plan.model_sha256, FILE)
    return plan


def doubts_at(config: ReviewConfig) -> Doubts:
    """The same for --mode doubtful."""
    if not storage.exists(storage.join(config.output, doubts.FILE)):
        from must.deploy.review.prepare import prepare_doubts  # imports torch

        found = prepare_doubts(config)
        doubts.save_doubts(found, config.output)
        return found
    found = doubts.load_doubts(config.output)
    check_model(config, found.model_sha256, doubts.FILE)
    return found


def check_model(config: ReviewConfig, sha256: str, file: str) -> None:
    weights = fingerprint(storage.read_bytes(storage.join(config.model, "model.safetensors")))
    require(
        weights == sha256,
        f"--output {config.output}: its {file} is about another model; delete that file to ask about this one: "
        "answers stay good",
    )


def write_page(config: ReviewConfig, session: Session, pictures: Pictures) -> None:
    page, count = self_contained(session, pictures, config.pictures)
    storage.write_bytes(config.page, page)
    logger.info(printable(f"{config.page}: {count:,} pictures, {len(page) / 1e6:.1f} MB; it saves answers.jsonl"))


async def run(config: ReviewConfig, session: Session, pictures: Pictures, listener: Any) -> None:
    token = secrets.token_urlsafe(18)
    server = uvicorn.Server(
        uvicorn.Config(
            App(session, pictures, token),
            http=protocol_within(PATIENCE, Room(CONNECTIONS)),
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_graceful_shutdown=5,
        )
    )
    serving = asyncio.create_task(server._serve([listener]))  # not `serve`, which takes the signals over
    host = f"[{config.host}]" if ":" in config.host else config.host
    known = len(session.answers)
    logger.info(printable(f"must review: http://{host}:{listener.getsockname()[1]}/{token}/"))
    logger.info(printable(f"answers: {session.path} ({known:,} so far); Ctrl-C ends, the same command goes on"))
    await until_signal(serving)
    server.should_exit = True
    await serving
    logger.info(printable_page(closing(config, session)))


def closing(config: ReviewConfig, session: Session) -> str:
    if isinstance(session.plan, Doubts):
        count = doubts.save_relabelled(session.plan, session.answers, config.output)
        file = storage.join(config.output, doubts.RELABELLED)
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
