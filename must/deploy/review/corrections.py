"""`must review --add`: answers made elsewhere, as a CSV file with image and class."""

import csv
import io
from collections import defaultdict
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from must.base import storage
from must.base.errors import UserError
from must.base.files import ANSWERS_FILE
from must.base.parameters import require
from must.base.text import NONE_OF_THESE, brief, close_to, compose, counted, uncell
from must.config.evaluate import ReviewConfig
from must.data.loading.reader import ShardReader
from must.method.answers.answers_file import ADDED, RANDOM, Answer, append_answers, read_answers
from must.method.answers.review import fingerprint

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
        sha256 = fingerprint(reader.image(number))
        label, before = labels[name], current.get(sha256)
        first = said.setdefault(sha256, name)
        require(
            labels[first] == label,
            f"--add {config.add}: {named([first, name])} are one picture, and have the classes "
            f"{named([labels[first] or NONE_OF_THESE, label or NONE_OF_THESE])}; give it one class",
        )
        sampled = RANDOM if before and before.sampled == RANDOM else ADDED
        if before and before.label == label and not before.unsure and before.fits(classes):
            continue
        new[sha256] = Answer(sha256, label, False, reader.description(number)["source"], config.who, now, sampled)
    append_answers(Path(storage.local(config.output)) / ANSWERS_FILE, classes, new.values())
    return f"{config.add}: {counted(len(new), 'new answer')} of {len(labels):,}"


def read_corrections(uri: str, classes: list[str]) -> dict[str, str | None]:
    """image -> class, None for none of the classes. Rows without a class are left out."""
    require(storage.exists(uri), f"--add {uri}: no such file")
    labels, unknown, known = dict[str, str | None](), dict[str, int](), (*classes, NONE_OF_THESE)
    for line, name, text in read_correction_rows(uri):
        if not text.strip():
            continue
        forms = text, text.strip(), uncell(text.strip())
        if (label := next((form for form in forms if form in known), None)) is None:
            unknown.setdefault(text.strip(), line)
        else:
            said = label if label in classes else None
            require(
                labels.setdefault(name, said) == said,
                f"--add {uri}, line {line}: {brief(name)} has another class in a line above; give it one class",
            )
    if unknown:
        (first, line), *others = unknown.items()
        near = close_to(first, known)
        advice = f"did you mean '{near[0]}'?" if near else f"classes: {named(classes)}"
        also = f"; also unknown: {named([label for label, _ in others])}" if others else ""
        raise UserError(f"--add {uri}, line {line}: {brief(first)} is not a class of the model; {advice}{also}")
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
            f"{where}: the first line must name the columns image and class; it is: {brief(first)}",
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
    return ", ".join(map(brief, names[:NAMED])) + more


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
        forms = ((name, form) for name in names for form in (uncell(name), name) if form.startswith(folders))
        pairs = ((name, samples.get(form.removeprefix(folders), ())) for name, form in forms)
        return {name: found[0] for name, found in pairs if len(found) == 1}

    exact, by_content = find(""), dict[str, int]()
    for name in names:
        with suppress(OSError):  # a name that is too long, a folder that may not be read
            path = storage.local(uncell(name)) if "://" not in name and name not in exact else None
            if path and path.is_file():
                by_content[name] = files.get(storage.compute_sha256(path), -1)
    names = [name for name in names if name not in by_content]
    first = uncell(next((name for name in names if name not in exact), ""))
    cuts = [first[: place + 1] for place, letter in enumerate(first) if letter == "/"]
    found = max(map(find, ["", *cuts]), key=len)
    return found | {name: number for name, number in by_content.items() if number >= 0}
