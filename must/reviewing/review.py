"""The stage `must review`: computes the review once, then serves a page until a signal ends it.

`must review --add`: answers made elsewhere, as a CSV file with image and class."""

import asyncio
import csv
import io
import logging
import os
import secrets
import shlex
import socket
import sys
import threading
import webbrowser
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from must.answers.answers_file import ADDED, Answer, append_answers, read_answers
from must.answers.population import POPULATION_FILE
from must.answers.review import REVIEW_FILE, Review, hash_picture
from must.base import storage
from must.base.errors import UserError
from must.base.lock import Kind, locked
from must.base.parameters import require
from must.base.processes import LONGEST_END, DaemonThreads
from must.base.program import load_torch
from must.base.text import (
    NONE_OF_THESE,
    abbreviate,
    close_to,
    compose,
    escape_cell,
    format_csv,
    make_page_printable,
    make_printable,
    parse_csv,
    pluralize,
    read_back,
    unescape_cell,
)
from must.config import RefineConfig
from must.config.evaluate import ReviewConfig
from must.config.work import ANSWERS_FILE, FOLDERS_FILE, PARTS, RECORD_FILE, REFINED_FILE, Workspace, find_work
from must.data.reader import ShardReader, open_reader
from must.model.description import load_description
from must.reviewing.progress import find_made_of
from must.reviewing.session import Session

if TYPE_CHECKING:
    from must.reviewing.page import App

logger = logging.getLogger(__name__)


CORRECTION_COLUMNS = "image", "class"
PREDICTED_ENDINGS = "probability", "zero_shot"  # of columns in tables of `must predict`, `evaluate` and `refine`
MARKS = ",;\t"  # between cells: Excel writes semicolons in many countries
NAMED = 3  # images or classes in a message


def add_corrections(
    config: ReviewConfig, labels: dict[str, str | None], classes: list[str], reader: ShardReader
) -> str:
    """Adds answers to OUTPUT/answers.jsonl; returns a line about them. An answer about a picture that was drawn at
    random measures also when it is corrected. `labels`: from `read_corrections`, of the model's `classes`."""
    numbers = find_pictures(reader, [*labels])
    missing = [name for name in labels if name not in numbers]
    require(
        not missing,
        f"--add {config.add}: {named(missing)}: not in the split '{reader.split}' of the shards, or more than one "
        "picture there has this name; write names as in predictions.csv, all of them with the same folder before them "
        "or none",
    )
    current, new, said = read_answers(config.output), dict[str, Answer](), dict[str, str]()
    now = datetime.now(UTC).isoformat(timespec="microseconds")
    for name, number in numbers.items():
        sha256 = hash_picture(reader.image(number))
        label, before = labels[name], current.get(sha256)
        first = said.setdefault(sha256, name)
        require(
            labels[first] == label,
            f"--add {config.add}: {named([first, name])} are one picture, and have the classes "
            f"{named([labels[first] or NONE_OF_THESE, label or NONE_OF_THESE])}; give it one class",
        )
        sampled, drawn = (before.sampled, before.drawn) if before and before.measures else (ADDED, False)
        if before and before.label == label and not before.unsure and before.fits(classes):
            continue
        name, model = reader.description(number)["source"], before.model if before else ""
        new[sha256] = Answer(sha256, label, False, name, config.signature, now, sampled, model, drawn)
    append_answers(Path(storage.local(config.output)) / ANSWERS_FILE, classes, new.values())
    return f"{config.add}: {pluralize(len(new), 'new answer')} of {len(labels):,}"


def read_corrections(uri: str, classes: list[str]) -> dict[str, str | None]:
    """image -> class, None for none of the classes. Rows without a class are left out."""
    require(storage.exists(uri), f"--add {uri}: no such file")
    labels, unknown, known = dict[str, str | None](), dict[str, int](), (*classes, NONE_OF_THESE)
    for line, name, text in read_correction_rows(uri):
        if not text.strip():
            continue
        forms = text, text.strip(), unescape_cell(text.strip())
        if (label := next((form for form in forms if form in known), None)) is None:
            unknown.setdefault(text.strip(), line)
        else:
            said = label if label in classes else None
            require(
                labels.setdefault(name, said) == said,
                f"--add {uri}, line {line}: {abbreviate(name)} has another class in a line above; give it one class",
            )
    if unknown:
        (first, line), *others = unknown.items()
        near = close_to(first, known)
        advice = f"did you mean '{near[0]}'?" if near else f"classes: {named(classes)}"
        also = f"; also unknown: {named([label for label, _ in others])}" if others else ""
        raise UserError(f"--add {uri}, line {line}: {abbreviate(first)} is not a class of the model; {advice}{also}")
    require(bool(labels), f"--add {uri}: has no row with an image and a class")
    return labels


def read_correction_rows(uri: str) -> Iterator[tuple[int, str, str]]:
    """(line, image, class), '' where a cell is empty."""
    where = f"--add {uri}"
    try:
        text = storage.read_bytes(uri).decode("utf-8-sig")
        first = text.partition("\n")[0]
        rows = {mark: next(csv.reader([first.lower()], delimiter=mark), []) for mark in MARKS}
        names = {mark: [name.strip() for name in row] for mark, row in rows.items()}
        mark = next((mark for mark in MARKS if {*CORRECTION_COLUMNS} <= {*names[mark]}), ",")
        columns = names[mark]
        predicted = [name for name in columns if name == "confidence" or name.endswith(PREDICTED_ENDINGS)]
        require(
            not predicted,
            f"{where}: is a table of predictions, not of answers: it has the column {', '.join(predicted[:1])}; give a "
            "table with the columns image and class of what a person has checked",
        )
        require(
            {*CORRECTION_COLUMNS} <= {*columns},
            f"{where}: the first line must name the columns image and class; it is: {abbreviate(first)}",
        )
        table = csv.DictReader(io.StringIO(text, newline=""), columns, delimiter=mark)
        next(table)
        for row in table:
            yield table.line_num, row["image"] or "", compose(row["class"] or "")
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{where}: is no CSV file in UTF-8: {error}; in a spreadsheet, save it as CSV UTF-8") from None


def named(names: list[str]) -> str:
    """'a', 'b', 'c' and 2 more."""
    more = f" and {len(names) - NAMED:,} more" if len(names) > NAMED else ""
    return ", ".join(map(abbreviate, names[:NAMED])) + more


def find_pictures(reader: ShardReader, names: list[str]) -> dict[str, int]:
    """Image -> sample of the split: by its name in the shards, with the same folders before all names, as a file with
    this name in any other folder may be another picture; or by its file, if that is on this machine. Images that are
    not found are left out."""
    samples, files = defaultdict[str, list[int]](list), dict[str, int]()
    for number in range(len(reader)):
        description = reader.description(number)
        samples[description["source"]].append(number)
        files.setdefault(description.get("sha256", ""), number)

    def find(folders: str) -> dict[str, int]:
        """Those whose names are `folders` and a name in the shards."""
        forms = ((name, form) for name in names for form in (unescape_cell(name), name) if form.startswith(folders))
        pairs = ((name, samples.get(form.removeprefix(folders), ())) for name, form in forms)
        return {name: found[0] for name, found in pairs if len(found) == 1}

    exact, by_content = find(""), dict[str, int]()
    for name in names:
        with suppress(OSError):  # a name that is too long, a folder that may not be read
            path = storage.local(unescape_cell(name)) if "://" not in name and name not in exact else None
            if path and path.is_file():
                by_content[name] = files.get(storage.compute_sha256(path), -1)
    names = [name for name in names if name not in by_content]
    first = unescape_cell(next((name for name in names if name not in exact), ""))
    cuts = [first[: place + 1] for place, letter in enumerate(first) if letter == "/"]
    found = max(map(find, ["", *cuts]), key=len)
    return found | {name: number for name, number in by_content.items() if number >= 0}


REVIEW = Kind("must review", "--output", ".review.lock")
RELABELLED = "relabelled.csv"
CONNECTIONS = 512  # of all browsers together, at most; pictures are decoded a few at a time
KEEP_ALIVE = 5  # seconds without a request, or for its head, after which a connection ends


def review(config: ReviewConfig, truth: Mapping[str, str] | None = None) -> None:
    """Serves until SIGINT or SIGTERM. Answers are in OUTPUT/answers.jsonl; a restart loses none. `truth`: image ->
    class, of all images of the split; the page then says how many labels are right."""
    if config.add:  # before the pictures are looked at, which takes longer
        classes = load_description(config.model).classes
        labels = read_corrections(config.add, classes)
    else:
        from must.reviewing.page import App
        from must.serving.serve import check_no_loop, listen

        check_no_loop("must review")
    folder = storage.local(config.output)
    folder.mkdir(parents=True, exist_ok=True)
    with locked(str(folder), REVIEW):
        saved = review_at(config)
        reader = open_reader(config.shards, config.split, sha256=saved.index_sha256 if saved else "")
        if config.add:
            if not saved:  # the images that later answers are drawn from
                prepare_review(config)
            lines = [add_corrections(config, labels, classes, reader), *list_next_commands(config)]
            logger.info(make_page_printable("\n".join(lines)))
            return
        with listen(config.host, config.port) as listener:
            app = App(None, reader, secrets.token_urlsafe(18))
            asyncio.run(serve_page(config, app, saved, listener, truth))


def prepare_review(config: ReviewConfig) -> Review:
    load_torch("review")
    from must.reviewing.prepare import compute_review  # imports torch

    review, _ = compute_review(config)
    review.save(config.output)
    return review


class ReviewStoppedError(Exception):
    """The program ends."""


def compute_questions(
    config: ReviewConfig, app: "App", saved: Review | None, ending: threading.Event, truth: Mapping[str, str] | None
) -> None:
    """Computes the review and the images that show the effect of answers, or ends before, once `ending` is set. Raises
    the errors of `compute_review`."""

    def show(review: Review, effect: Any = None) -> None:
        if app.session:
            app.session.set_review(review, effect)
        else:
            app.session = Session(review, config.output, config.signature, effect)
            app.session.commands, app.session.change = list_commands(config), describe_change(config)
        app.session.misplaced = read_misplaced(config, review)

    def pause() -> None:
        if ending.is_set():
            raise ReviewStoppedError

    if saved:
        show(saved)
    from must.reviewing.prepare import AnswerEffect, compute_review, limit_threads  # imports torch

    limit_threads()
    app.wait = "Looking at the pictures ..."
    with suppress(ReviewStoppedError):
        review, images = compute_review(config, saved, pause)
        if review is not saved:
            review.save(config.output)
        show(review, AnswerEffect(config, images, truth))


def read_misplaced(config: ReviewConfig, review: Review) -> dict[str, tuple[str, str]]:
    """sha256 -> (folder, the class that it seems to have) of pictures that seem to lie in the wrong folder and that
    nobody has answered, as `must refine` found with this model."""
    work = find_work(RefineConfig, {"model": config.model, "shards": config.shards})
    summary, table = (storage.join(work, PARTS["labels"].path, name) for name in (REFINED_FILE, FOLDERS_FILE))
    known = {read_back(picture.image): picture.sha256 for picture in review.pictures}
    with suppress(UserError, OSError, LookupError, ValueError, AttributeError, csv.Error):
        made_of = storage.read_object(summary, dict, UserError())["weights_sha256"]
        rows = parse_csv(storage.read_bytes(table)) if made_of == review.model_sha256 else ()
        mine = [row for row in rows if row["by"] == "model" and row["image"] in known]
        return {known[row["image"]]: (row["folder"], row["class"]) for row in mine}
    return {}


def review_at(config: ReviewConfig) -> Review | None:
    """The one in the folder, if it is about this model and these shards; otherwise another one has to be made."""
    if not all(storage.exists(storage.join(config.output, name)) for name in (REVIEW_FILE, POPULATION_FILE)):
        return None
    review = Review.load(config.output)
    current = *find_made_of(config.model, config.shards), config.split
    if review and current == (review.model_sha256, review.index_sha256, review.split):
        return review
    if answers := len(read_answers(config.output)):
        kept = f"your {pluralize(answers, 'answer')} {'is' if answers == 1 else 'are'} kept"
        logger.info(make_printable(f"{kept}; the images or the model are others than before"))
    return None


async def serve_page(
    config: ReviewConfig, app: "App", saved: Review | None, listener: socket.socket, truth: Mapping[str, str] | None
) -> None:
    """Serves until a signal. Raises the errors of `compute_questions`."""
    from must.serving.serve import format_url, serve_until_signal

    asyncio.get_running_loop().set_default_executor(DaemonThreads())
    url = f"{format_url(config.host, listener)}/{app.token}/"
    logger.info(make_printable(f"must review: {url}"))
    logger.info(
        make_printable(f"answers: {storage.join(config.output, ANSWERS_FILE)}; Ctrl-C ends, the same command resumes")
    )
    if config.browser and sys.stdout.isatty():
        threading.Thread(target=open_browser, args=(url, storage.local(config.output)), daemon=True).start()
    serving = asyncio.ensure_future(
        serve_until_signal(
            app, listener, timeout_keep_alive=KEEP_ALIVE, limit_concurrency=CONNECTIONS, timeout_graceful_shutdown=2
        )
    )
    ending = threading.Event()
    computing = asyncio.ensure_future(asyncio.to_thread(compute_questions, config, app, saved, ending, truth))
    await asyncio.wait((serving, computing), return_when=asyncio.FIRST_COMPLETED)
    if computing.done():
        computing.result()
    await serving
    ending.set()
    await asyncio.wait((computing,), timeout=LONGEST_END)
    if computing.done():
        computing.result()
    if app.session:
        logger.info(make_page_printable(summarize(config, app.session)))


def open_browser(url: str, folder: Path) -> None:
    """Does nothing where there is no display: the address is also printed. By a file that leads to it, as all users of
    a machine see the browser's command line."""
    if sys.platform == "linux" and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        return
    file = folder / "open.html"
    with suppress(webbrowser.Error, OSError):
        file.touch(0o600)
        file.write_text(f'<meta http-equiv="refresh" content="0;url={url}">')
        webbrowser.open(file.absolute().as_uri())


def summarize(config: ReviewConfig, session: Session) -> str:
    """What the answers measure, and the next commands. Also writes relabelled.csv."""
    if session.effect is not None:
        session.effect.wait()
    lines = [session.text(), write_relabelled(config, session)]
    return "\n".join([*lines, *(list_next_commands(config) if session.answers else [])])


def write_relabelled(config: ReviewConfig, session: Session) -> str:
    """Returns a line about the file."""
    rows = [["image", "model", "label", "who", "when", "sha256"]]
    for answer in session.answers.values():
        if answer.corrects and not answer.unsure:
            texts = answer.image, answer.model or "", answer.label or "", answer.who, answer.when
            rows.append([*map(escape_cell, texts), answer.sha256])
    file = storage.join(config.output, RELABELLED)
    storage.write_bytes(file, format_csv(rows))
    return f"{pluralize(len(rows) - 1, 'picture')} to which people give another class than the labels had: {file}"


def list_next_commands(config: ReviewConfig) -> list[str]:
    return [f"next: {command}" for command in list_commands(config)]


def find_adapted(config: ReviewConfig) -> str:
    """The folder of `must adapt` that the answers are in; "" if it is not one."""
    work = find_work(RefineConfig, {"model": config.model, "shards": config.shards})
    own = work and Path(work, PARTS["answers"].path).resolve() == storage.local(config.output).resolve()
    return work if own and Path(work, RECORD_FILE).exists() else ""


def describe_change(config: ReviewConfig) -> dict[str, str]:
    """How classes are added and renamed: `work`, as a word of a command, and the `file` with their names, "" where
    these are words of a command; {} where neither is so."""
    if not (work := find_adapted(config)):
        return {}
    classes = Workspace(work).read_words().get("classes") or ""
    file = classes if isinstance(classes, str) and Path(classes).is_file() else ""
    named = isinstance(classes, list) or "," in classes
    return {"work": shlex.quote(work), "file": file} if file or named else {}


def list_commands(config: ReviewConfig) -> list[str]:
    if work := find_adapted(config):  # what lies in folders of classes is not sorted by the model's labels
        in_folders = Path(work, PARTS["labels"].path, FOLDERS_FILE).exists()
        commands = ("adapt", "export") if in_folders else ("adapt", "sort", "export")
        return [shlex.join(["must", command, work]) for command in commands]
    if work := find_work(RefineConfig, {"model": config.model, "shards": config.shards}):
        return [shlex.join(["must", "refine", work, "--answers", config.output])]
    model, baseline, shards, output = map(shlex.quote, (config.model, config.baseline, config.shards, config.output))
    refine = f"must refine --model {model} --classifier {baseline} --shards {shards} --answers {output}"
    return [f"{refine} --output labels/"]
