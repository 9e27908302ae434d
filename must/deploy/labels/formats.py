"""Reads and writes labels, by a model or by people, in the file formats of labelling tools.

    predictions (must predict, refine, evaluate), answers (must review), exports of Label Studio and FiftyOne
        -> list of Label -> Label Studio, FiftyOne, cleanlab, answers, a plain table

The formats are plain JSON, CSV and Parquet: none of the tools needs to be installed. No torch.
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

IMAGE_COLUMNS = ("image", "path", "source", "filepath", "file_name", "file")  # the first one that the file has
CLASS_COLUMNS = ("adapted", "class", "label", "choice")
UPLOADS = "/data/upload/"  # Label Studio's address of an uploaded file, which it renames
LOCAL_FILES = "/data/local-files/?d="  # its address of a file below its document root
IMAGE_FIELD = "must_image"  # in a task's data: the original name of the image


@dataclass(frozen=True)
class Label:
    """An image and its class; `label` None: none of the classes.

    `probability`: None for a person's label; `top`: a model's classes with their probabilities, best first; `sha256`:
    of the image's file; `who`, `when`: author and time of a person's label; these three are '' if unknown; `picked`:
    `must review` selected the image because models disagree on it or because it is hard.
    """

    image: str
    label: str | None
    probability: float | None = None
    unsure: bool = False  # the person could not tell the class
    top: tuple[tuple[str, float], ...] = ()
    sha256: str = ""
    who: str = ""
    when: str = ""
    picked: bool = False


def read_labels(uri: str) -> list[Label]:
    """The labels in a file of any format above: one per image, the last one if the file has several.
    Raises ValueError: no such file, an unknown format, or a damaged file."""
    require(storage.exists(uri), f"--labels {uri}: no such file")
    file = file_in(uri)
    require(storage.exists(file), f"--labels {uri}: is a folder without labels.json; give a file of labels")
    where = f"--labels {file}"
    text = read_text(file, where)
    try:
        if file.lower().endswith((".csv", ".tsv")):
            labels = list(from_table(text, where, "\t" if file.lower().endswith(".tsv") else ","))
        elif file.lower().endswith(".jsonl"):
            labels = list(from_lines(text, where))
        else:
            labels = list(from_json(json.loads(text), file, where))
    except csv.Error as error:
        raise UserError(f"{where}: is damaged, or of a format that is not known: {error}") from None
    except (KeyError, TypeError, AttributeError, IndexError, OverflowError, RecursionError) as error:
        raise UserError(f"{where}: is damaged, or of a format that is not known ({type(error).__name__})") from None
    except ValueError as error:
        is_json = not isinstance(error, json.JSONDecodeError)
        problem = "is damaged, or of a format that is not known" if is_json else "is no JSON"
        raise UserError(str(error) if str(error).startswith(where) else f"{where}: {problem}: {error}") from None
    require(bool(labels), f"{where}: holds no labels")
    for label in labels:
        texts = isinstance(label.image, str) and isinstance(label.label, str | None)
        require(texts, f"{where}: an image or a label that is no text: {brief(str((label.image, label.label)))}")
        numbers = [value for _, value in label.top] + ([] if label.probability is None else [label.probability])
        wrong = next((value for value in numbers if not 0 <= round(value, 6) <= 1), None)  # also NaN
        require(wrong is None, f"{where}: {brief(label.image)}: {wrong} is no probability; it must be from 0 to 1")
    return list({label.image: label for label in labels}.values())


def file_in(uri: str) -> str:
    """The file of labels: `uri`, or labels.json in the folder (FiftyOne)."""
    return storage.join(uri, "labels.json") if not storage.is_remote(uri) and storage.local(uri).is_dir() else uri


def read_text(uri: str, where: str) -> str:
    try:
        return storage.read_bytes(uri).decode("utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(f"{where}: is no text in UTF-8") from None


def from_table(text: str, where: str, delimiter: str) -> Iterator[Label]:
    """A CSV of predictions or of a labelling tool, with columns for the image and its class."""
    table = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter)
    columns = list(table.fieldnames or ())
    image = next((name for name in IMAGE_COLUMNS if name in columns), None)
    label = next((name for name in CLASS_COLUMNS if name in columns), None)
    if not image or not label:
        raise UserError(
            f"{where}: the first line must name a column of images ({', '.join(IMAGE_COLUMNS)}) and one of classes "
            f"({', '.join(CLASS_COLUMNS)}); it is: {brief(','.join(columns))}"
        )
    probability_column = "confidence" if {"confidence", "zero_shot"} <= {*columns} else "probability"  # `must refine`
    ranks = [(label, f"{label}_probability" if label == "adapted" else probability_column)]
    ranks += [(name, f"probability{name[5:]}") for name in columns if name.startswith("class_") and name[6:].isdigit()]
    by_model = ranks[0][1] in columns
    for row in table:
        top = tuple((uncell(row[name]), float(row[p] or 0)) for name, p in ranks if by_model and row.get(name))
        name = uncell(row[label] or "") or None
        probability = float(row[ranks[0][1]] or 0) if by_model else None
        if name is None and not by_model:
            continue  # the image has no label
        yield Label(
            uncell(row.get(IMAGE_FIELD) or row[image]),
            None if name == NONE_OF_THESE and not by_model else name,
            probability,
            top=top,
        )


def from_lines(text: str, where: str) -> Iterator[Label]:
    """JSON lines: predictions of `must predict`, or answers."""
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            raise UserError(f"{where}: line {number} is no JSON") from None
        if "predictions" in row:
            top = tuple((entry["class"], float(entry["probability"])) for entry in row["predictions"])
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


def from_json(content: Any, file: str, where: str) -> Iterator[Label]:
    """An export of Label Studio (JSON, JSON_MIN), or of FiftyOne (FiftyOneImageClassificationDataset; FiftyOneDataset,
    where the fields `ground_truth` and `label` have priority over `predictions`)."""
    if isinstance(content, list):
        for task in content:
            yield from from_task(task)
    elif isinstance(content, dict) and "pred_probs" in content:
        raise UserError(
            f"{where}: is input for cleanlab and has no labels by people; review cleanlab's findings and give them "
            "as a CSV with the columns image and label"
        )
    elif isinstance(content, dict) and "labels" in content:
        paths = paths_of(file.rpartition("/")[0] or ".")
        for name, entry in content["labels"].items():
            label = entry.get("label") if isinstance(entry, dict) else entry
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


def paths_of(folder: str) -> dict[str, str]:
    """{image name in labels.json: its file}, from data.json or from the exported folder data/."""
    manifest, data = storage.join(folder, "data.json"), storage.join(folder, "data")
    if storage.exists(manifest):
        return json.loads(storage.read_bytes(manifest))
    if storage.is_remote(folder) or not storage.local(data).is_dir():
        return {}
    return {entry.name.rpartition(".")[0]: storage.join(data, entry.name) for entry in storage.list_files(data)}


def from_task(task: dict[str, Any]) -> Iterator[Label]:
    """A task of Label Studio: its last annotation that was not cancelled. Yields nothing without an annotation."""
    data = task.get("data", task)
    image = data.get(IMAGE_FIELD) or studio_address(data["image"])
    if "annotations" not in task and "data" not in task:  # JSON_MIN
        choices = next((data[name] for name in CLASS_COLUMNS if data.get(name)), None)
        if choices:
            choice = choices if isinstance(choices, str) else choices["choices"][0]
            yield Label(image, None if choice == NONE_OF_THESE else choice, who=str(data.get("annotator") or ""))
        return
    annotations = [entry for entry in task.get("annotations") or () if not entry.get("was_cancelled")]
    for annotation in annotations[-1:]:
        choices = [entry["value"]["choices"] for entry in annotation["result"] if entry.get("type") == "choices"]
        if choices and choices[0]:
            author = annotation.get("completed_by") or ""
            who = str(author.get("email") or author.get("id") or "") if isinstance(author, dict) else str(author)
            when = str(annotation.get("updated_at") or annotation.get("created_at") or "")
            yield Label(image, None if choices[0][0] == NONE_OF_THESE else choices[0][0], who=who, when=when)


def studio_address(url: str) -> str:
    """The file of a Label Studio address, as far as the address names it."""
    if url.startswith(LOCAL_FILES):
        return urllib.parse.unquote(url.removeprefix(LOCAL_FILES))
    return url.rpartition("/")[2] if url.startswith(UPLOADS) else url


def classes_of(labels: Iterable[Label], more: Iterable[str] = ()) -> list[str]:
    """All class names of the labels: first those of `more`, in its order, then the others, sorted."""
    names = {name for label in labels for name in (label.label, *(name for name, _ in label.top)) if name}
    return [*more, *sorted(names - {*more})]


def label_studio(labels: list[Label], root: str) -> bytes:
    """Tasks to import: labels by a model as predictions, by people as annotations. File names are relative to `root`,
    which must be Label Studio's document root for local files."""
    tasks = []
    for label in labels:
        url = label.image if "://" in label.image else LOCAL_FILES + urllib.parse.quote(below_root(label.image, root))
        task: dict[str, Any] = {"data": {"image": url, IMAGE_FIELD: label.image}}
        if not label.unsure:
            value = {"choices": [label.label or NONE_OF_THESE]}
            result = [{"from_name": "class", "to_name": "image", "type": "choices", "value": value}]
            if label.probability is None:
                task["annotations"] = [{"result": result}]
            else:
                task["predictions"] = [{"model_version": "must", "score": label.probability, "result": result}]
        tasks.append(task)
    return json_bytes(tasks)


def below_root(image: str, root: str) -> str:
    path, folder = (str(storage.local(uri).absolute()) for uri in (image, root or "/"))
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
    entries: dict[str, Any] = {}
    paths = {}
    for number, label in enumerate(labels):
        name = f"{number:08d}"
        paths[name] = label.image if "://" in label.image else str(storage.local(label.image).absolute())
        if not label.unsure:
            entries[name] = {"label": label.label or NONE_OF_THESE}
            entries[name] |= {} if label.probability is None else {"confidence": label.probability}
    return json_bytes({"classes": [*classes, NONE_OF_THESE], "labels": entries}), json_bytes(paths)


def cleanlab(labels: list[Label], class_of: Callable[[Label], str | None], where: str) -> dict[str, Any]:
    """The input of cleanlab's functions: `classes` [K], `images` [N], `labels` [N] (class numbers, -1 for none) and
    `pred_probs` [N, K]. `class_of` gives the class to be checked.
    Raises ValueError: predictions without the probabilities of all classes."""
    classes = classes_of(labels)
    for label in labels:
        require(
            len(label.top) == len(classes),
            f"{where}: {label.image} has probabilities of {len(label.top)} of {len(classes)} classes; predict with "
            f"--top-k {len(classes)} or more",
        )
    number_of = {name: number for number, name in enumerate(classes)}
    rows = [[dict(label.top)[name] for name in classes] for label in labels]
    rows = [[value / (sum(row) or 1) for value in row] for row in rows]  # the file has six digits
    numbers = [number_of.get(class_of(label) or "", -1) for label in labels]
    return {"classes": classes, "images": [label.image for label in labels], "labels": numbers, "pred_probs": rows}


def answers(labels: list[Label], sha256: Callable[[str], str]) -> bytes:
    """The answers.jsonl of `must review`: one line per label of a person."""
    lines = []
    for label in labels:
        row: dict[str, Any] = {"image": label.image, "sha256": label.sha256 or sha256(label.image)}
        row |= {"unsure": True} if label.unsure else {"label": label.label}
        row |= {"picked": True} if label.picked else {}
        lines.append(json.dumps(row | {"who": label.who, "when": label.when}, ensure_ascii=True) + "\n")
    return "".join(lines).encode()


def json_bytes(content: Any) -> bytes:
    return (json.dumps(content, indent=1, ensure_ascii=True) + "\n").encode()
