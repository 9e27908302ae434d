"""The stage `must review`: computes the review once, then serves a page until a signal ends it."""

import asyncio
import logging
import os
import secrets
import shlex
import socket
import sys
import threading
import webbrowser
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from must.base import storage
from must.base.files import ANSWERS_FILE, RECORD_FILE, WEIGHTS_FILE
from must.base.lock import Kind, locked
from must.base.processes import LONGEST_END, DaemonThreads
from must.base.progress import load_torch
from must.base.text import cell, counted, format_csv, printable, printable_page
from must.config import RefineConfig
from must.config.evaluate import ReviewConfig
from must.config.work import PARTS, find_work
from must.data.format.index import load_index
from must.data.loading.reader import open_reader
from must.deploy.review.corrections import add_corrections, read_corrections
from must.deploy.review.session import Session
from must.method.answers.population import POPULATION_FILE
from must.method.answers.review import MODEL, REVIEW_FILE, Review, fingerprint
from must.method.model.description import load_description

if TYPE_CHECKING:  # --add needs no packages of the server
    from must.deploy.review.page import App

logger = logging.getLogger(__name__)

REVIEW = Kind("must review", "--output", ".review.lock")
RELABELLED = "relabelled.csv"
CONNECTIONS = 64  # of all browsers together, at most
KEEP_ALIVE = 30  # seconds without a request, or for its head, after which a connection ends


def review(config: ReviewConfig) -> None:
    """Serves until SIGINT or SIGTERM. Answers are in OUTPUT/answers.jsonl; a restart loses none."""
    if config.add:  # before the pictures are looked at, which takes longer
        classes = load_description(config.model).classes
        labels = read_corrections(config.add, classes)
    else:
        from must.deploy.review.page import App
        from must.deploy.serve.serve import check_no_loop, listen

        check_no_loop("must review")
    folder = storage.local(config.output)
    folder.mkdir(parents=True, exist_ok=True)
    with locked(str(folder), REVIEW):
        saved = review_at(config)
        reader = open_reader(
            config.shards, config.split, config.cache, config.cache_gb, sha256=saved.index_sha256 if saved else ""
        )
        if config.add:
            review = saved or prepare_review(config)
            added = add_corrections(config, labels, classes, reader)
            lines = [added, review.text(review.answers(config.output)), *next_lines(config)]
            logger.info(printable_page("\n".join(lines)))
            return
        with listen(config.host, config.port) as listener:
            asyncio.run(serve_page(config, App(None, reader, secrets.token_urlsafe(18)), saved, listener))


def prepare_review(config: ReviewConfig) -> Review:
    load_torch("review")
    from must.deploy.review.prepare import compute_review  # imports torch

    review, _ = compute_review(config)
    review.save(config.output)
    return review


class StoppedError(Exception):
    """The program ends."""


def compute_questions(config: ReviewConfig, app: "App", saved: Review | None, ending: threading.Event) -> None:
    """Computes the review and the images that show the effect of answers, or ends before, once `ending` is set. Raises
    the errors of `compute_review`."""

    def show(review: Review, effect: Any = None) -> None:
        if app.session:
            app.session.set_review(review, effect)
        else:
            app.session = Session(review, config.output, config.signature, effect, commands=list_commands(config))

    def pause() -> None:
        if ending.is_set():
            raise StoppedError

    if saved:
        show(saved)
    from must.deploy.review.prepare import AnswerEffect, compute_review, limit_threads  # imports torch

    limit_threads()
    app.wait = "Looking at the pictures ..."
    with suppress(StoppedError):
        review, images = compute_review(config, saved, pause)
        if not saved:
            review.save(config.output)
        show(review, AnswerEffect(config, images))


def review_at(config: ReviewConfig) -> Review | None:
    """The one in the folder, if it is about this model and these shards; otherwise another one has to be made."""
    if not all(storage.exists(storage.join(config.output, name)) for name in (REVIEW_FILE, POPULATION_FILE)):
        return None
    review = Review.load(config.output, "--output")
    weights = fingerprint(storage.read_bytes(storage.join(config.model, WEIGHTS_FILE)))
    current = weights, load_index(config.shards).sha256, config.split
    if current == (review.model_sha256, review.index_sha256, review.split):
        return review
    logger.info(printable(f"{config.output}: another model or other images than before: all are looked at again"))
    return None


async def serve_page(config: ReviewConfig, app: "App", saved: Review | None, listener: socket.socket) -> None:
    """Serves until a signal. Raises the errors of `compute_questions`."""
    from must.deploy.serve.serve import format_url, serve_until_signal

    asyncio.get_running_loop().set_default_executor(DaemonThreads())
    url = f"{format_url(config.host, listener)}/{app.token}/"
    logger.info(printable(f"must review: {url}"))
    logger.info(
        printable(f"answers: {storage.join(config.output, ANSWERS_FILE)}; Ctrl-C ends, the same command resumes")
    )
    if config.browser and sys.stdout.isatty():
        threading.Thread(target=open_browser, args=(url,), daemon=True).start()
    serving = asyncio.ensure_future(
        serve_until_signal(
            app, listener, timeout_keep_alive=KEEP_ALIVE, limit_concurrency=CONNECTIONS, timeout_graceful_shutdown=2
        )
    )
    ending = threading.Event()
    computing = asyncio.ensure_future(asyncio.to_thread(compute_questions, config, app, saved, ending))
    await asyncio.wait((serving, computing), return_when=asyncio.FIRST_COMPLETED)
    if computing.done():
        computing.result()
    await serving
    ending.set()
    await asyncio.wait((computing,), timeout=LONGEST_END)
    if computing.done():
        computing.result()
    if app.session:
        logger.info(printable_page(summarize(config, app.session)))


def open_browser(url: str) -> None:
    """Does nothing where there is no display: the address is also printed."""
    if sys.platform == "linux" and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        return
    with suppress(webbrowser.Error, OSError):
        webbrowser.open(url)


def summarize(config: ReviewConfig, session: Session) -> str:
    """What the answers measure, and the next commands. Also writes relabelled.csv."""
    lines = [session.text(), write_relabelled(config, session)]
    return "\n".join([*lines, *(next_lines(config) if session.answers else [])])


def write_relabelled(config: ReviewConfig, session: Session) -> str:
    """Returns a line about the file."""
    rows = [["image", "model", "label", "who", "when", "sha256"]]
    for picture, answer in session.review.relabelled(session.answers):
        model = session.review.classes[picture.classes[MODEL]]
        texts = picture.image, model, answer.label or "", answer.who, answer.when
        rows.append([*map(cell, texts), picture.sha256])
    file = storage.join(config.output, RELABELLED)
    storage.write_bytes(file, format_csv(rows))
    return f"{counted(len(rows) - 1, 'picture')} to which people give another class than the model: {file}"


def next_lines(config: ReviewConfig) -> list[str]:
    return [f"next: {command}" for command in list_commands(config)]


def list_commands(config: ReviewConfig) -> list[str]:
    if work := find_work(RefineConfig, {"model": config.model, "shards": config.shards}):
        is_default = Path(work, PARTS["answers"].path).resolve() == storage.local(config.output).resolve()
        if is_default and Path(work, RECORD_FILE).exists():
            return [shlex.join(["must", command, work]) for command in ("adapt", "sort", "export")]
        return [shlex.join(["must", "refine", work, *([] if is_default else ["--answers", config.output])])]
    model, baseline, shards, output = map(shlex.quote, (config.model, config.baseline, config.shards, config.output))
    refine = f"must refine --model {model} --classifier {baseline} --shards {shards} --answers {output}"
    return [f"{refine} --output labels/"]
