"""A run that waits for people: the page on which they answer, and what comes of their answers when it goes on.

Nothing waits in a pod. The run ends; answers are put beside the page, and the next run with the same data and settings
finds them there: its training is done already, and `must select --answers` decides what of it is kept.
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
from must.base.errors import UserError
from must.base.files import WEIGHTS_FILE
from must.base.parameters import require
from must.base.storage import ConflictError
from must.config import ReviewConfig
from must.data.loading.reader import open_reader
from must.deploy.review.page import self_contained
from must.deploy.review.pictures import Pictures
from must.deploy.review.session import Session, in_words
from must.method.answers.book import FILE as ANSWERS
from must.method.answers.book import read_answers, whole
from must.method.answers.decided import decided
from must.method.answers.questions import fingerprint, whole_of
from must.method.answers.sampling import SamplingPlan
from must.method.model.bundle import load_description
from must.runtime.places import WorkUri

logger = logging.getLogger(__name__)
PAGE = "review.html"
PICTURES = 200  # on a page, at most
TRIES = 5  # to add answers while others do


def can_be_asked(bundle: str, gate: str) -> bool:
    """Whether people's answers may still decide of a model that the gate does not promote.

    The label-free gate asks where look-alikes left a part of the way undecided; the reviewed one wherever there is an
    adaptation about which no answers have decided.
    """
    selection = load_description(bundle).provenance.get("selection") or {}
    if gate not in ("label-free", "reviewed") or (selection.get("review") or {}).get("alpha") is not None:
        return False
    return whole_of(bundle) != bundle or (gate == "reviewed" and selection.get("alpha", 1.0) > 0)


def ask(work_uri: str, *, key: str, bundle: str, classifier: str, output: str) -> dict[str, Any]:
    """Writes the page to the folder `output` and, with the plan, to the run's place. Pictures that have an answer are
    not asked again.

    Returns:
        `place`, `pictures` on the page, `text` about how far the answers have come.
    """
    place, model = WorkUri(work_uri).review(key), whole_of(bundle)
    plan = plan_at(place, model)
    if plan is None:
        from must.deploy.review.prepare import prepare  # imports torch

        shards = WorkUri(work_uri).shards
        plan = prepare(ReviewConfig(model=model, baseline=classifier, shards=shards, output=output))
        plan.save(place)
    reader = open_reader(plan.shards, plan.split, sha256=plan.index_sha256)
    with tempfile.TemporaryDirectory() as folder:
        if storage.exists(storage.join(place, ANSWERS)):
            storage.download(storage.join(place, ANSWERS), Path(folder) / ANSWERS)
        session = Session(plan, folder, "")
        page, count = self_contained(session, Pictures(reader), PICTURES)
        text = in_words(plan.verdict(session.answers), plan)
    for folder in (output, place):
        storage.write_bytes(storage.join(folder, PAGE), page)
    logger.info(f"{storage.join(place, PAGE)}: {count:,} pictures, {len(page) / 1e6:.1f} MB")
    return {"place": place, "pictures": count, "text": text}


def plan_at(place: str, model: str) -> SamplingPlan | None:
    """The plan there, if it is about this model."""
    if not storage.exists(storage.join(place, SamplingPlan.FILE)):
        return None
    plan = SamplingPlan.load(place)
    same = plan.model_sha256 == fingerprint(storage.read_bytes(storage.join(model, WEIGHTS_FILE)))
    return plan if same else None


def keep_what_people_say(work_uri: str, key: str, bundle: str, classifier: str, apart: bool = False) -> None:
    """Where answers about this model decide, puts what they keep of it in the place of the bundle.

    Args:
        key: of the data and settings, as of `champion`.
        apart: in a process of its own, outside of torchrun's.
    """
    place, model = WorkUri(work_uri).review(key), whole_of(bundle)
    if not storage.exists(storage.join(place, ANSWERS)):
        return
    if plan_at(place, model) is None:
        logger.warning(f"the answers in {place} are about another model; they are left alone")
        return
    found = decided(place, storage.join(model, WEIGHTS_FILE))
    logger.info(found.text)
    if found.alpha is None:
        return
    shards = WorkUri(work_uri).shards
    values = {"model": model, "baseline": classifier, "shards": shards, "answers": place, "output": bundle}
    if not apart:
        call("select", **values)
        return
    flags = [text for name, value in values.items() for text in (f"--{name}", value)]
    torchrun = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT")
    environment = {name: value for name, value in os.environ.items() if name not in torchrun}
    code = subprocess.run([sys.executable, "-m", "must", "select", *flags], env=environment, check=False).returncode
    if code:
        raise SystemExit(code)


def decide_already(work_uri: str, key: str) -> bool:
    """Whether there are answers that decide what a run of this key had left to people."""
    place = WorkUri(work_uri).review(key)
    if not storage.exists(storage.join(place, ANSWERS)):
        return False
    plan = SamplingPlan.load(place)
    return plan.verdict(read_answers(place, plan.classes)).outcome != "open"


class Put(NamedTuple):
    place: str
    decided: bool
    text: str  # one line


def put_answers(work_uri: str, file: str, place: str = "") -> Put:
    """Adds a file of answers to those that are there.

    Args:
        place: of the review that they are about; else the one of this work_uri that asks about most of its pictures.

    Raises:
        ValueError: no such file, or lines that are no answers, or about other pictures, or with other classes.
    """
    require(storage.exists(file), f"{file}: no such file; the page saves it as {ANSWERS}")
    about = {answer.sha256 for answer in read_answers(file).values()}
    require(bool(about), f"{file}: there are no answers in it")
    found = {one: SamplingPlan.load(one) for one in ([place] if place else reviews(work_uri))}
    require(bool(found), f"{work_uri}: no run waits for answers there")
    asked = {one: len(about & {picture.sha256 for picture in plan.pictures}) for one, plan in found.items()}
    place = max(asked, key=lambda one: asked[one])
    require(asked[place] > 0, f"{file}: none of its {len(about):,} answers is about a picture that {place} asks about")
    plan = found[place]
    read_answers(file, plan.classes)  # raises where it names none of them
    add(storage.join(place, ANSWERS), storage.read_bytes(file))
    verdict = plan.verdict(read_answers(place, plan.classes))
    return Put(place, verdict.outcome != "open", in_words(verdict, plan))


def reviews(work_uri: str) -> Iterator[str]:
    root = WorkUri(work_uri).reviews
    try:
        for entry in storage.list_files(root):
            if entry.name.endswith(f"/{SamplingPlan.FILE}"):
                yield storage.join(root, entry.name.removesuffix(f"/{SamplingPlan.FILE}"))
    except (FileNotFoundError, NotADirectoryError):
        return


def add(uri: str, data: bytes) -> None:
    """Those lines that are not there yet, at the end: the last one about a picture counts."""
    for left in range(TRIES, 0, -1):
        before, token = storage.read_versioned(uri)
        lines = (before or b"").splitlines()
        known = set(lines)
        new = [line for line in data.splitlines() if line.strip() and line not in known and whole(line)]
        try:
            storage.write_bytes(uri, b"".join(line + b"\n" for line in [*lines, *new]), token)
        except ConflictError:
            if left == 1:
                raise UserError(f"{uri}: others write there; try again") from None
        else:
            return
