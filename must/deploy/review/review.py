"""The stage `must review`: what is asked is computed once, then a page is served until a signal ends it."""

import asyncio
import logging
import os
import secrets
import shlex
import socket
import sys
import threading
import time
import webbrowser
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

from must.base import storage
from must.base.files import ANSWERS_FILE, WEIGHTS_FILE
from must.base.lock import Kind, locked
from must.base.parameters import require
from must.base.progress import loading
from must.base.text import cell, counted, csv_of, printable, printable_page
from must.config import SelectConfig
from must.config.review import ReviewConfig
from must.config.work import standing_for
from must.data.loading.reader import open_reader
from must.deploy.review.http import App
from must.deploy.review.page import Pictures, self_contained
from must.deploy.review.session import Session
from must.deploy.serve.server import check_no_loop, listen, serve_until_signal, url_of
from must.method.answers.book import add, read_answers
from must.method.answers.review import FIRST_IMAGES, IMAGES_FILE, MODEL, RANDOM, REVIEW_FILE, Review, fingerprint

logger = logging.getLogger(__name__)

REVIEW = Kind("must review", "--output", ".review.lock")
RELABELLED = "relabelled.csv"
CONNECTIONS = 64  # of all browsers together
KEEP_ALIVE = 30.0  # seconds that a browser has for a request's head, and for taking an answer


def review(config: ReviewConfig) -> None:
    """Serves until SIGINT or SIGTERM, or writes --page. Answers are in OUTPUT/answers.jsonl; going on loses none.

    Raises:
        ValueError: no such model, shards of another revision, another `must review` at work there, an address that
            cannot be listened at.
    """
    if not (config.page or config.add):
        check_no_loop("must review")
    folder = storage.local(config.output)
    folder.mkdir(parents=True, exist_ok=True)
    with locked(str(folder), REVIEW):
        if config.add:
            add_answers(config)
            return
        begun = review_at(config)
        reader = open_reader(
            config.shards, config.split, config.cache, config.cache_gb, sha256=begun.index_sha256 if begun else ""
        )
        pictures = Pictures(reader)
        if config.page:
            about = begun if begun and complete(config) else prepared(config)
            page, count = self_contained(Session(about, str(folder), config.signature), pictures, config.pictures)
            storage.write_bytes(config.page, page)
            said = f"{config.page}: {counted(count, 'picture')}, {len(page) / 1e6:.1f} MB; it saves answers.jsonl"
            logger.info(printable(said))
            return
        with listen(config.host, config.port) as listener:
            app = App(None, pictures, secrets.token_urlsafe(18))
            with closing(Questions(config, app, begun, min(len(reader), config.images))) as questions:
                asyncio.run(serve_page(config, questions, listener))


def complete(config: ReviewConfig) -> bool:
    """Whether all images were looked at, and not the first ones alone."""
    return storage.exists(storage.join(config.output, IMAGES_FILE))


def prepared(config: ReviewConfig) -> Review:
    loading("review")
    from must.deploy.review.prepare import prepare  # imports torch

    about, images = prepare(config)
    about.save(config.output)
    images.save(config.output)
    return about


class StoppedError(Exception):
    """The program ends."""


class Questions:
    """Makes what is asked, in a thread: after the first images the questions begin, and the others follow."""

    def __init__(self, config: ReviewConfig, app: App, begun: Review | None, images: int) -> None:
        self.config, self.app, self.begun, self.images = config, app, begun, images
        self.stopped, self.teaching = False, list[Any]()
        self.started, self.part = time.monotonic(), 0.0

    def close(self) -> None:
        """Ends all threads: none may compute while the program ends."""
        self.stopped = True
        for one in self.teaching:
            one.close()

    def make(self) -> None:
        """Raises what `looks` does."""
        whole = self.begun and complete(self.config)
        if self.begun:
            self.ask(self.begun, None)
        from must.deploy.review.prepare import Images, limit_threads  # imports torch

        limit_threads()
        if self.begun and whole:
            self.ask(self.begun, Images.load(self.config.output))
            return
        (Path(storage.local(self.config.output)) / IMAGES_FILE).unlink(missing_ok=True)  # of another review
        from must.deploy.review.prepare import looks

        try:
            for about, images in looks(self.config, self.begun, self.pause):
                about.save(self.config.output)
                self.ask(about, images)
            images.save(self.config.output)  # the last: it says that all images were looked at
            logger.info(f"must review: all {counted(len(images.numbers), 'image')} looked at")
        except StoppedError:
            return

    def ask(self, about: Review, images: Any) -> None:
        teaching = None
        if images:
            from must.deploy.review.prepare import Teaching

            teaching = Teaching(images)
            self.teaching.append(teaching)
        if self.app.session:
            self.app.session.hold(about, teaching)
            return
        commands = commands_of(self.config)
        self.app.session = Session(about, self.config.output, self.config.signature, teaching, commands=commands)
        logger.info(f"must review: the first question is there after {time.monotonic() - self.started:.0f} s")

    def pause(self, done: int, part: int, every: int) -> None:
        """Raises StoppedError: the program ends."""
        if self.stopped:
            raise StoppedError
        if not done:
            self.part = time.monotonic()
        text = f"Looking at the first {part:,} of {counted(every, 'image')}: {done:,} done"
        left = (time.monotonic() - self.part) / done * (part - done) if done else 0
        self.app.wait = f"{text}; the first question comes in about {left + 1:.0f} s." if done else f"{text} ..."


def add_answers(config: ReviewConfig) -> None:
    """Adds the lines of --add to OUTPUT/answers.jsonl. Raises ValueError: no answers, or about other pictures."""
    about = Review.load(config.output, "--output")
    require(storage.exists(config.add), f"--add {config.add}: no such file")
    given = read_answers(config.add, about.classes).keys()
    known = given & {picture.sha256 for picture in about.pictures}
    why = f"none of its {counted(len(given), 'answer')} is about a picture of {config.output}"
    require(bool(known), f"--add {config.add}: {why}")
    new = add(storage.join(config.output, ANSWERS_FILE), storage.read_bytes(config.add))
    other = f"; {counted(len(given) - len(known), 'answer')} about other pictures" if len(given) > len(known) else ""
    said = f"{config.add}: {counted(new, 'new line')} of {counted(len(given), 'answer')}{other}"
    logger.info(printable_page(f"{said}\n{about.text(about.answers(config.output))}"))


def review_at(config: ReviewConfig) -> Review | None:
    """The one in the folder. Raises ValueError: it is about another model, or in another order."""
    if not storage.exists(storage.join(config.output, REVIEW_FILE)):
        return None
    found = Review.load(config.output, "--output")
    weights = fingerprint(storage.read_bytes(storage.join(config.model, WEIGHTS_FILE)))
    other = "about another model" if weights != found.model_sha256 else f"in the order {found.order}"
    require(
        weights == found.model_sha256 and config.order == found.order,
        f"--output {config.output}: its {REVIEW_FILE} is {other}; delete that file for a new one; answers are kept",
    )
    return found


async def serve_page(config: ReviewConfig, questions: Questions, listener: socket.socket) -> None:
    """Serves until a signal. Raises what making the questions does."""
    app = questions.app
    place = f"{url_of(config.host, listener)}/{app.token}/"
    logger.info(printable(f"must review: {place}"))
    when = (
        "at once"
        if questions.begun
        else f"after the first {FIRST_IMAGES} are looked at: seconds with a GPU, else a minute or so"
    )
    logger.info(printable(f"{counted(questions.images, 'image')}; questions begin {when}"))
    logger.info(
        printable(f"answers: {storage.join(config.output, ANSWERS_FILE)}; Ctrl-C ends, the same command resumes")
    )
    if config.browser and sys.stdout.isatty():
        threading.Thread(target=open_browser, args=(place,), daemon=True).start()
    serving = asyncio.ensure_future(
        serve_until_signal(app, listener, KEEP_ALIVE, limit_concurrency=CONNECTIONS, timeout_graceful_shutdown=5)
    )
    making = asyncio.ensure_future(asyncio.to_thread(questions.make))
    await asyncio.wait((serving, making), return_when=asyncio.FIRST_COMPLETED)
    if making.done():
        making.result()
    await serving
    questions.stopped = True
    await making
    if app.session:
        logger.info(printable_page(what_next(config, app.session)))


def open_browser(place: str) -> None:
    """Where there is a display; elsewhere the address that is printed must do."""
    if sys.platform == "linux" and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        return
    with suppress(webbrowser.Error, OSError):
        webbrowser.open(place)


def what_next(config: ReviewConfig, session: Session) -> str:
    """What the answers say, and what to do with them. Writes relabelled.csv anew."""
    rows = [["image", "model", "label", "who", "when", "sha256"]]
    for picture, answer in session.review.relabelled(session.answers):
        model = session.review.classes[picture.classes[MODEL]]
        texts = picture.image, model, answer.label or "", answer.who, answer.when
        rows.append([*map(cell, texts), picture.sha256])
    file = storage.join(config.output, RELABELLED)
    storage.write_bytes(file, csv_of(rows))
    other = f"{counted(len(rows) - 1, 'picture')} to which people give another class than the model: {file}"
    return "\n".join([session.text(), other, *(f"next: {command}" for command in commands_of(config))])


def commands_of(config: ReviewConfig) -> list[str]:
    """What to type after the answers."""
    given = {name: getattr(config, name) for name in ("model", "baseline", "shards")}
    model, baseline, shards, output = map(shlex.quote, (*given.values(), config.output))
    places = f"--model {model} --shards {shards} --answers {output}"
    select = f"must select {places} --baseline {baseline} --output selected/"
    refine = f"must refine {places} --classifier {baseline} --output labels/"
    if work := standing_for(SelectConfig, given):
        select, refine = (shlex.join(["must", stage, work]) for stage in ("select", "refine"))
    return [select, refine] if config.order == RANDOM else [refine]
