"""A run that waits for people's answers: writes the page with the questions, and uses the answers when it resumes.

No pod waits. The run ends; the answers are stored beside the page, and the next run with the same data and settings
finds them there: its training is complete, and `must select --answers` chooses alpha.
"""

import logging
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from must.api.stages import call
from must.base import storage
from must.base.files import ANSWERS_FILE, WEIGHTS_FILE
from must.base.parameters import require
from must.config import ReviewConfig
from must.method.answers.answers_file import add, read_answers
from must.method.answers.review import REVIEW_FILE, Review, fingerprint
from must.method.model.bundle import load_description
from must.method.model.provenance import Selection
from must.runtime.places import WorkUri

logger = logging.getLogger(__name__)
PAGE = "review.html"
COUNT = "answers_on_page"  # how many answers there were when the page was written
PICTURES = 200  # largest number of pictures on a page


def answers_may_decide(bundle: str, gate: str) -> bool:
    """Whether people's answers may still change the gate's decision not to promote a model: with the gate `reviewed`,
    or with `label-free` if the check has a warning, as long as no answers have shown a gain or a loss."""
    selection = load_description(bundle).provenance.selection or Selection()
    warned = bool(selection.check and selection.check.warnings)
    undecided = selection.measured is None or selection.measured.gain.low <= 0 <= selection.measured.gain.high
    applies = gate == "reviewed" or (gate == "label-free" and warned)
    return applies and selection.alpha != 0 and undecided


def write_page(work_uri: str, *, key: str, bundle: str, classifier: str, output: str) -> dict[str, Any]:
    """Writes the page to the folder `output` and, with the review, to the review's folder. Pictures with an answer are
    left out.
    Returns `place`, the review's folder; `pictures`, their number on the page; `text`, what the answers so far measure.
    """
    from must.data.loading.reader import open_reader  # imports Pillow, which other functions of this module do not need
    from must.deploy.review.page import Pictures, self_contained
    from must.deploy.review.session import Session

    review_uri, weights = WorkUri(work_uri).review(key), storage.join(bundle, WEIGHTS_FILE)
    review = load_review(review_uri)
    if review is None or review.model_sha256 != fingerprint(storage.read_bytes(weights)):
        from must.deploy.review.prepare import prepare  # imports torch

        shards = WorkUri(work_uri).shards
        review, _ = prepare(ReviewConfig(model=bundle, baseline=classifier, shards=shards, output=output))
        review.save(review_uri)
    reader = open_reader(review.shards, review.split, sha256=review.index_sha256)
    with tempfile.TemporaryDirectory() as folder:
        if storage.exists(storage.join(review_uri, ANSWERS_FILE)):
            storage.download(storage.join(review_uri, ANSWERS_FILE), Path(folder) / ANSWERS_FILE)
        session = Session(review, folder, "")
        page, count = self_contained(session, Pictures(reader), PICTURES)
    storage.write_bytes(storage.join(review_uri, COUNT), str(len(session.answers)).encode())
    for folder in (output, review_uri):
        storage.write_bytes(storage.join(folder, PAGE), page)
    logger.info(f"{storage.join(review_uri, PAGE)}: {count:,} pictures, {len(page) / 1e6:.1f} MB")
    return {"place": review_uri, "pictures": count, "text": session.text()}


def load_review(uri: str) -> Review | None:
    """The review in a folder; None if there is none that this version can read."""
    try:
        return Review.load(uri) if storage.exists(storage.join(uri, REVIEW_FILE)) else None
    except ValueError as error:
        logger.warning(str(error))
        return None


def select_by_answers(
    work_uri: str, key: str, bundle: str, classifier: str, separate_process: bool = False
) -> None:  # fmt: skip
    """If there are enough answers to measure, replaces the bundle by the one with the alpha that they choose.

    Args:
        key: of the data and settings, as in `champion`.
        separate_process: run `must select` in its own process, outside torchrun.
    """
    uri = WorkUri(work_uri).review(key)
    review = load_review(uri)
    if review is None or review.measured(review.answers(uri)) is None:
        return
    shards = WorkUri(work_uri).shards
    values = {"model": bundle, "baseline": classifier, "shards": shards, "answers": uri, "output": bundle}
    if not separate_process:
        call("select", **values)
        return
    flags = [text for name, value in values.items() for text in (f"--{name}", value)]
    torchrun = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT")
    environment = {name: value for name, value in os.environ.items() if name not in torchrun}
    code = subprocess.run([sys.executable, "-m", "must", "select", *flags], env=environment, check=False).returncode
    if code:
        raise SystemExit(code)


def has_new_answers(work_uri: str, key: str) -> bool:
    """Whether there are more answers than when the page of this key was written."""
    uri = WorkUri(work_uri).review(key)
    review = load_review(uri)
    count_file = storage.join(uri, COUNT)
    count = int(storage.read_bytes(count_file)) if storage.exists(count_file) else 0
    return review is not None and len(review.answers(uri)) > count


def add_answers(work_uri: str, file: str, review_uri: str = "") -> str:
    """Adds a file of answers to the existing ones; returns a line: the review's folder, and what its answers measure.
    `review_uri`: folder of the review to which they belong; if '', the one that has most of the file's pictures.
    Raises ValueError: no such file, or lines that are no answers, or about other pictures, or with other classes."""
    require(storage.exists(file), f"{file}: no such file; the page saves it as {ANSWERS_FILE}")
    answered = read_answers(file).keys()
    require(bool(answered), f"{file}: there are no answers in it")
    reviews = {uri: Review.load(uri) for uri in ([review_uri] if review_uri else review_uris(work_uri))}
    require(bool(reviews), f"{work_uri}: no run waits for answers there")
    matches = {uri: len(answered & {picture.sha256 for picture in review.pictures}) for uri, review in reviews.items()}
    uri = max(matches, key=lambda uri: matches[uri])
    require(matches[uri] > 0, f"{file}: none of its {len(answered):,} answers is about a picture that {uri} asks about")
    review = reviews[uri]
    read_answers(file, review.classes)  # raises ValueError: an answer with another class
    add(storage.join(uri, ANSWERS_FILE), storage.read_bytes(file))
    return f"{uri}: {review.text(review.answers(uri))}"


def review_uris(work_uri: str) -> Iterator[str]:
    root = WorkUri(work_uri).reviews
    for entry in storage.list_existing(root):
        if entry.name.endswith(f"/{REVIEW_FILE}"):
            yield storage.join(root, entry.name.removesuffix(f"/{REVIEW_FILE}"))
