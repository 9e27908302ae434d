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
NAMED = 3  # images or classes in a message


def add_corrections(
    config: ReviewConfig, labels: dict[str, str | None], classes: list[str], reader: ShardReader
) -> str:
    """Adds answers to OUTPUT/answers.jsonl; returns a line about them. An answer about a picture that was drawn at
    random measures also when it is corrected. `labels`: from `read_corrections`, of the model's `classes`."""
    pictures = PicturesByName(reader)
    numbers = {name: pictures.find(name) for name in labels}
    missing = [name for name, number in numbers.items() if number is None]
    require(
        not missing,
        f"--add {config.add}: {named(missing)}: not in the split '{reader.split}' of the shards, or more than one "
        "picture there has this name; write names as in predictions.csv",
    )
    current, new = read_answers(config.output), dict[str, Answer]()
    now = datetime.now(UTC).isoformat(timespec="microseconds")
    for name, number in numbers.items():
        assert number is not None
        sha256 = fingerprint(reader.image(number))
        label, before = labels[name], current.get(sha256)
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
            labels[name] = label if label in classes else None
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
        named = {*CORRECTION_COLUMNS} <= {*next(csv.reader([first]), ())}
        delimiter = "," if named or ";" not in first else ";"  # Excel writes semicolons in many countries
        table = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter)
        columns = table.fieldnames or ()
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
        for row in table:
            yield table.line_num, row["image"] or "", compose(row["class"] or "")
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{where}: is no CSV file in UTF-8: {error}") from None


def named(names: list[str]) -> str:
    """'a', 'b', 'c' and 2 more."""
    more = f" and {len(names) - NAMED:,} more" if len(names) > NAMED else ""
    return ", ".join(map(brief, names[:NAMED])) + more


class PicturesByName:
    """The samples of a split by the names of their images, and by the sha256 of their files."""

    def __init__(self, reader: ShardReader) -> None:
        self.names: dict[str, list[int]] = defaultdict(list)
        self.files: dict[str, int] = {}
        for number in range(len(reader)):
            description = reader.description(number)
            self.names[description["source"]].append(number)
            self.files.setdefault(description.get("sha256", ""), number)

    def find(self, name: str) -> int | None:
        """The sample of an image: by its name in the shards; by its file, if that is on this machine; or by the end of
        its path. None: there is none, or there are several."""
        for candidate in dict.fromkeys((name, uncell(name))):
            if (number := self.only(candidate)) is not None:
                return number
            with suppress(OSError):  # a name that is too long, a folder that may not be read
                if "://" not in candidate and (path := storage.local(candidate)).is_file():
                    return self.files.get(storage.compute_sha256(path))
            parts = candidate.split("/")
            for start in range(1, len(parts)):
                if (number := self.only("/".join(parts[start:]))) is not None:
                    return number
        return None

    def only(self, name: str) -> int | None:
        numbers = self.names.get(name, ())
        return numbers[0] if len(numbers) == 1 else None
