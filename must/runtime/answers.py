"""A run that waits for people: the page on which they answer, and what comes of their answers when it goes on.

Nothing waits in a pod. The run ends; answers are put beside the page, and the next run with the same data and settings
finds them there: its training is done already, and `must select --answers` chooses what of it is kept.
"""

import logging
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from must.api.stages import call
from must.base import storage
from must.base.files import ANSWERS_FILE, WEIGHTS_FILE
from must.base.parameters import require
from must.config import ReviewConfig
from must.method.answers.book import add, read_answers
from must.method.answers.review import REVIEW_FILE, Review, fingerprint
from must.method.model.bundle import load_description
from must.method.model.provenance import Selection
from must.runtime.places import WorkUri

logger = logging.getLogger(__name__)
PAGE = "review.html"
COUNT = "answers_on_page"  # how many answers there were when the page was written
PICTURES = 200  # on a page, at most


def can_be_asked(bundle: str, gate: str) -> bool:
    """Whether people's answers may still change what the gate said of a model that it does not promote: by the gate
    `reviewed`, and by `label-free` where the check has a warning; until answers show a gain or a loss."""
    selection = load_description(bundle).provenance.selection or Selection()
    warned = bool(selection.check and selection.check.warnings)
    open_still = selection.measured is None or selection.measured.gain.low <= 0 <= selection.measured.gain.high
    fits = gate == "reviewed" or (gate == "label-free" and warned)
    return fits and selection.alpha != 0 and open_still


def ask(work_uri: str, *, key: str, bundle: str, classifier: str, output: str) -> dict[str, Any]:
    """Writes the page to the folder `output` and, with the review, to the run's place. Pictures that have an answer are
    not asked again.

    Returns:
        `place`, `pictures` on the page, `text` about what the answers so far say.
    """
    from must.data.loading.reader import open_reader  # with Pillow, which no other stage of this module waits for
    from must.deploy.review.page import Pictures, self_contained
    from must.deploy.review.session import Session

    place, weights = WorkUri(work_uri).review(key), storage.join(bundle, WEIGHTS_FILE)
    review = review_at(place)
    if review is None or review.model_sha256 != fingerprint(storage.read_bytes(weights)):
        from must.deploy.review.prepare import prepare  # imports torch

        shards = WorkUri(work_uri).shards
        review, _ = prepare(ReviewConfig(model=bundle, baseline=classifier, shards=shards, output=output))
        review.save(place)
    reader = open_reader(review.shards, review.split, sha256=review.index_sha256)
    with tempfile.TemporaryDirectory() as folder:
        if storage.exists(storage.join(place, ANSWERS_FILE)):
            storage.download(storage.join(place, ANSWERS_FILE), Path(folder) / ANSWERS_FILE)
        session = Session(review, folder, "")
        page, count = self_contained(session, Pictures(reader), PICTURES)
    storage.write_bytes(storage.join(place, COUNT), str(len(session.answers)).encode())
    for folder in (output, place):
        storage.write_bytes(storage.join(folder, PAGE), page)
    logger.info(f"{storage.join(place, PAGE)}: {count:,} pictures, {len(page) / 1e6:.1f} MB")
    return {"place": place, "pictures": count, "text": session.text()}


def review_at(place: str) -> Review | None:
    """The review there; None where there is none that this version reads."""
    try:
        return Review.load(place) if storage.exists(storage.join(place, REVIEW_FILE)) else None
    except ValueError as error:
        logger.warning(str(error))
        return None


def keep_what_people_say(work_uri: str, key: str, bundle: str, classifier: str, apart: bool = False) -> None:
    """Where there are answers that measure, puts the share that they choose in the place of the bundle.

    Args:
        key: of the data and settings, as of `champion`.
        apart: in a process of its own, outside of torchrun's.
    """
    place = WorkUri(work_uri).review(key)
    review = review_at(place)
    if review is None or review.measured(review.answers(place)) is None:
        return
    shards = WorkUri(work_uri).shards
    values = {"model": bundle, "baseline": classifier, "shards": shards, "answers": place, "output": bundle}
    if not apart:
        call("select", **values)
        return
    flags = [text for name, value in values.items() for text in (f"--{name}", value)]
    torchrun = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT")
    environment = {name: value for name, value in os.environ.items() if name not in torchrun}
    code = subprocess.run([sys.executable, "-m", "must", "select", *flags], env=environment, check=False).returncode
    if code:
        raise SystemExit(code)


def answered_since(work_uri: str, key: str) -> bool:
    """Whether answers have come since a run of this key was left to people."""
    place = WorkUri(work_uri).review(key)
    review = review_at(place)
    before = storage.join(place, COUNT)
    known = int(storage.read_bytes(before)) if storage.exists(before) else 0
    return review is not None and len(review.answers(place)) > known


class Put(NamedTuple):
    place: str
    text: str  # one line: what the answers measure


def put_answers(work_uri: str, file: str, place: str = "") -> Put:
    """Adds a file of answers to those that are there.

    Args:
        place: of the review that they are about; else the one of this work_uri that asks about most of its pictures.

    Raises:
        ValueError: no such file, or lines that are no answers, or about other pictures, or with other classes.
    """
    require(storage.exists(file), f"{file}: no such file; the page saves it as {ANSWERS_FILE}")
    about = read_answers(file).keys()
    require(bool(about), f"{file}: there are no answers in it")
    found = {one: Review.load(one) for one in ([place] if place else reviews(work_uri))}
    require(bool(found), f"{work_uri}: no run waits for answers there")
    asked = {one: len(about & {picture.sha256 for picture in review.pictures}) for one, review in found.items()}
    place = max(asked, key=lambda one: asked[one])
    require(asked[place] > 0, f"{file}: none of its {len(about):,} answers is about a picture that {place} asks about")
    review = found[place]
    read_answers(file, review.classes)  # raises where it names none of them
    add(storage.join(place, ANSWERS_FILE), storage.read_bytes(file))
    return Put(place, review.text(review.answers(place)))


def reviews(work_uri: str) -> Iterator[str]:
    root = WorkUri(work_uri).reviews
    try:
        for entry in storage.list_files(root):
            if entry.name.endswith(f"/{REVIEW_FILE}"):
                yield storage.join(root, entry.name.removesuffix(f"/{REVIEW_FILE}"))
    except (FileNotFoundError, NotADirectoryError):
        return
