"""Which class each image has, said by a model or by a person, in the files of the tools that look at labels.

    predictions (must predict, refine, evaluate), answers (must review), exports of Label Studio and FiftyOne
        -> list of Label -> Label Studio, FiftyOne, cleanlab, answers, a plain table

The formats are plain JSON, CSV and Parquet: none of the tools has to be installed. No torch.
"""

import csv
import io
import json
import urllib.parse
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from must.base import storage
from must.base.errors import UserError
from must.base.parameters import require
from must.base.text import NONE_OF_THESE, brief, uncell, visible

IMAGE_COLUMNS = ("image", "path", "source", "filepath", "file_name", "file")  # columns, the first that is there
CLASS_COLUMNS = ("adapted", "class", "label", "choice")
UPLOADS = "/data/upload/"  # Label Studio's copies, whose names are its own
LOCAL_FILES = "/data/local-files/?d="  # its address of a file below its document root
IMAGE_FIELD = "must_image"  # in a task's data: the image as it is called here


@dataclass(frozen=True)
class Label:
    """An image and its class; `label` None: none of the classes.

    `probability` is a model's, None of what a person said; `top`: a model's classes with their probabilities, best
    first; `sha256`: of the image's file, `who` and `when` said it: '' if that is not known; `picked`: by `must review`,
    as one of those that models name differently, or that are hard.
    """

    image: str
    label: str | None
    probability: float | None = None
    unsure: bool = False  # a person could not tell
    top: tuple[tuple[str, float], ...] = ()
    sha256: str = ""
    who: str = ""
    when: str = ""
    picked: bool = False


def read_labels(uri: str, flag: str = "--labels") -> list[Label]:
    """The labels in a file of any format above, one an image: of several of the same one the last counts.
    Raises ValueError: no such file, none of the formats, or a damaged one."""
    require(storage.exists(uri), f"{flag} {uri}: no such file")
    place = file_in(uri)
    require(storage.exists(place), f"{flag} {uri}: is a folder without labels.json; give a file of labels")
    where = f"{flag} {place}"
    text = read_text(place, where)
    try:
        if place.lower().endswith((".csv", ".tsv")):
            found = list(from_table(text, where, "\t" if place.lower().endswith(".tsv") else ","))
        elif place.lower().endswith(".jsonl"):
            found = list(from_lines(text, where))
        else:
            found = list(from_json(json.loads(text), place, where))
    except csv.Error as error:
        raise UserError(f"{where}: is damaged, or of a format that is not known: {error}") from None
    except (KeyError, TypeError, AttributeError, IndexError, OverflowError, RecursionError) as error:
        raise UserError(f"{where}: is damaged, or of a format that is not known ({type(error).__name__})") from None
    except ValueError as error:
        no_json = isinstance(error, json.JSONDecodeError)
        what = "is no JSON" if no_json else "is damaged, or of a format that is not known"
        raise UserError(str(error) if str(error).startswith(where) else f"{where}: {what}: {error}") from None
    require(bool(found), f"{where}: holds no labels")
    for one in found:
        names = isinstance(one.image, str) and isinstance(one.label, str | None)
        require(names, f"{where}: an image or a label that is no text: {brief(str((one.image, one.label)))}")
        said = [probability for _, probability in one.top] + ([] if one.probability is None else [one.probability])
        odd = next((value for value in said if not 0 <= round(value, 6) <= 1), None)  # NaN is not, either
        require(odd is None, f"{where}: {brief(one.image)}: {odd} is no probability; it must be from 0 to 1")
    return list({label.image: label for label in found}.values())


def file_in(uri: str) -> str:
    """The file of labels: FiftyOne's are a folder with one."""
    return storage.join(uri, "labels.json") if not storage.is_remote(uri) and storage.local(uri).is_dir() else uri


def read_text(uri: str, where: str) -> str:
    try:
        return storage.read_bytes(uri).decode("utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(f"{where}: is no text in UTF-8") from None


def from_table(text: str, where: str, delimiter: str) -> Iterator[Label]:
    """A CSV of predictions, or of a labelling tool: columns for the image and its class, others as they come."""
    table = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter)
    columns = list(table.fieldnames or ())
    image = next((name for name in IMAGE_COLUMNS if name in columns), None)
    label = next((name for name in CLASS_COLUMNS if name in columns), None)
    if not image or not label:
        raise UserError(
            f"{where}: the first line must name a column of images ({', '.join(IMAGE_COLUMNS)}) and one of classes "
            f"({', '.join(CLASS_COLUMNS)}); it is: {brief(','.join(columns))}"
        )
    sure = "confidence" if {"confidence", "zero_shot"} <= {*columns} else "probability"  # must refine's word
    ranks = [(label, f"{label}_probability" if label == "adapted" else sure)]
    ranks += [(name, f"probability{name[5:]}") for name in columns if name.startswith("class_") and name[6:].isdigit()]
    by_model = ranks[0][1] in columns
    for row in table:
        top = tuple((uncell(row[name]), float(row[p] or 0)) for name, p in ranks if by_model and row.get(name))
        name = uncell(row[label] or "") or None
        probability = float(row[ranks[0][1]] or 0) if by_model else None
        if name is None and not by_model:
            continue  # nobody has said anything of it
        yield Label(
            uncell(row.get(IMAGE_FIELD) or row[image]),
            None if name == NONE_OF_THESE and not by_model else name,
            probability,
            top=top,
        )


def from_lines(text: str, where: str) -> Iterator[Label]:
    """JSON lines: `must predict`'s, or answers."""
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            raise UserError(f"{where}: line {number} is no JSON") from None
        if "predictions" in row:
            top = tuple((one["class"], float(one["probability"])) for one in row["predictions"])
            yield Label(row["image"], None if row.get("abstained") else top[0][0], top[0][1], top=top)
            continue
        require(
            isinstance(row.get("image"), str) and ("label" in row or row.get("unsure")),
            f"{where}: line {number} names no image and label",
        )
        sha256, who, when = (str(row.get(name) or "") for name in ("sha256", "who", "when"))
        label = row.get("label")
        require(label is None or isinstance(label, str), f"{where}: line {number}: the label is no text")
        unsure, picked = bool(row.get("unsure")), "position" in row or bool(row.get("picked"))
        yield Label(row["image"], label, unsure=unsure, sha256=sha256, who=who, when=when, picked=picked)


def from_json(content: Any, place: str, where: str) -> Iterator[Label]:
    """An export of Label Studio (JSON, JSON_MIN), or of FiftyOne (FiftyOneImageClassificationDataset; FiftyOneDataset,
    of which the fields `ground_truth` or `label` count before `predictions`)."""
    if isinstance(content, list):
        for task in content:
            yield from from_task(task)
    elif isinstance(content, dict) and "pred_probs" in content:
        raise UserError(
            f"{where}: is input for cleanlab and has no labels by people; review cleanlab's findings and give them "
            "as a CSV with the columns image and label"
        )
    elif isinstance(content, dict) and "labels" in content:
        paths = paths_beside(place.rpartition("/")[0] or ".")
        for name, said in content["labels"].items():
            label = said.get("label") if isinstance(said, dict) else said
            if label is not None:
                if isinstance(label, int):
                    require(0 <= label < len(content["classes"]), f"{where}: {label} is the number of no class")
                    label = content["classes"][label]
                yield Label(paths.get(name, name), None if label == NONE_OF_THESE else label)
    elif isinstance(content, dict) and "samples" in content:
        for sample in content["samples"]:
            field = next((sample[name] for name in ("ground_truth", "label", "predictions") if sample.get(name)), None)
            if field:
                yield Label(sample["filepath"], None if field["label"] == NONE_OF_THESE else field["label"])
    else:
        raise UserError(f"{where}: is no export of Label Studio or FiftyOne")


def paths_beside(folder: str) -> dict[str, str]:
    """By the name that labels.json has for an image: its file, of data.json or of the exported folder data/."""
    manifest, data = storage.join(folder, "data.json"), storage.join(folder, "data")
    if storage.exists(manifest):
        return json.loads(storage.read_bytes(manifest))
    if storage.is_remote(folder) or not storage.local(data).is_dir():
        return {}
    files = [entry.name for entry in storage.list_files(data)]
    return {name.rpartition(".")[0]: storage.join(data, name) for name in files}


def from_task(task: dict[str, Any]) -> Iterator[Label]:
    """A task of Label Studio: the last annotation that was not cancelled; what nobody has answered yields nothing."""
    data = task.get("data", task)
    image = data.get(IMAGE_FIELD) or studio_address(data["image"])
    if "annotations" not in task and "data" not in task:  # JSON_MIN
        choices = next((data[name] for name in CLASS_COLUMNS if data.get(name)), None)
        if choices:
            choice = choices if isinstance(choices, str) else choices["choices"][0]
            yield Label(image, None if choice == NONE_OF_THESE else choice, who=str(data.get("annotator") or ""))
        return
    done = [one for one in task.get("annotations") or () if not one.get("was_cancelled")]
    for annotation in done[-1:]:
        choices = [one["value"]["choices"] for one in annotation["result"] if one.get("type") == "choices"]
        if choices and choices[0]:
            by = annotation.get("completed_by") or ""
            who = str(by.get("email") or by.get("id") or "") if isinstance(by, dict) else str(by)
            when = str(annotation.get("updated_at") or annotation.get("created_at") or "")
            yield Label(image, None if choices[0][0] == NONE_OF_THESE else choices[0][0], who=who, when=when)


def studio_address(url: str) -> str:
    """The file that an address of Label Studio's names, as far as it says."""
    if url.startswith(LOCAL_FILES):
        return urllib.parse.unquote(url.removeprefix(LOCAL_FILES))
    return url.rpartition("/")[2] if url.startswith(UPLOADS) else url


def classes_of(labels: Iterable[Label], more: Iterable[str] = ()) -> list[str]:
    """All names that occur, in the order of `more` and then of the alphabet."""
    found = {name for one in labels for name in (one.label, *(name for name, _ in one.top)) if name}
    return [*more, *sorted(found - {*more})]


def label_studio(labels: list[Label], root: str) -> bytes:
    """Tasks to import: a model's classes as predictions, a person's as annotations. Files are named below `root`,
    which has to be Label Studio's document root for local files."""
    tasks = []
    for one in labels:
        name = one.image if "://" in one.image else LOCAL_FILES + urllib.parse.quote(below_root(one.image, root))
        task: dict[str, Any] = {"data": {"image": name, IMAGE_FIELD: one.image}}
        if not one.unsure:
            value = {"choices": [one.label or NONE_OF_THESE]}
            result = [{"from_name": "class", "to_name": "image", "type": "choices", "value": value}]
            if one.probability is None:
                task["annotations"] = [{"result": result}]
            else:
                task["predictions"] = [{"model_version": "must", "score": one.probability, "result": result}]
        tasks.append(task)
    return dumped(tasks)


def below_root(image: str, root: str) -> str:
    path, folder = (str(storage.local(one).absolute()) for one in (image, root or "/"))
    require(
        path.startswith(folder.rstrip("/") + "/"), f"--root {root}: {image} is not below it, so that it has no address"
    )
    return path.removeprefix(folder.rstrip("/") + "/")


def label_studio_config(classes: list[str]) -> bytes:
    """The project's labelling interface."""
    from xml.sax.saxutils import quoteattr

    choices = "".join(f"    <Choice value={quoteattr(visible(name))}/>\n" for name in [*classes, NONE_OF_THESE])
    head = '<View>\n  <Image name="image" value="$image"/>\n  <Choices name="class" toName="image" choice="single">\n'
    return f"{head}{choices}  </Choices>\n</View>\n".encode("utf-8", "replace")


def fiftyone(labels: list[Label], classes: list[str]) -> tuple[bytes, bytes]:
    """(labels.json, data.json) of a FiftyOneImageClassificationDataset."""
    said: dict[str, Any] = {}
    paths = {}
    for number, one in enumerate(labels):
        name = f"{number:08d}"
        paths[name] = one.image if "://" in one.image else str(storage.local(one.image).absolute())
        if not one.unsure:
            said[name] = {"label": one.label or NONE_OF_THESE}
            said[name] |= {} if one.probability is None else {"confidence": one.probability}
    return dumped({"classes": [*classes, NONE_OF_THESE], "labels": said}), dumped(paths)


def cleanlab(labels: list[Label], given: Callable[[Label], str | None], where: str) -> dict[str, Any]:
    """`classes` [K], `images` [N], `labels` [N] (class numbers, -1 where none is given) and `pred_probs` [N, K]: what
    cleanlab's functions take.
    Raises ValueError: predictions without the probabilities of all classes."""
    classes = classes_of(labels)
    for one in labels:
        require(
            len(one.top) == len(classes),
            f"{where}: {one.image} has probabilities of {len(one.top)} of {len(classes)} classes; predict with "
            f"--top-k {len(classes)} or more",
        )
    place = {name: number for number, name in enumerate(classes)}
    rows = [[dict(one.top)[name] for name in classes] for one in labels]
    rows = [[value / (sum(row) or 1) for value in row] for row in rows]  # they were written with six digits
    numbers = [place.get(given(one) or "", -1) for one in labels]
    return {"classes": classes, "images": [one.image for one in labels], "labels": numbers, "pred_probs": rows}


def answers(labels: list[Label], sha256: Callable[[str], str]) -> bytes:
    """A line a label: what a person said; `must review` writes the same."""
    lines = []
    for one in labels:
        row: dict[str, Any] = {"image": one.image, "sha256": one.sha256 or sha256(one.image)}
        row |= {"unsure": True} if one.unsure else {"label": one.label}
        row |= {"picked": True} if one.picked else {}
        lines.append(json.dumps(row | {"who": one.who, "when": one.when}, ensure_ascii=True) + "\n")
    return "".join(lines).encode()


def dumped(content: Any) -> bytes:
    return (json.dumps(content, indent=1, ensure_ascii=True) + "\n").encode()
