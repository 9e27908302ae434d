"""A folder of photographs, the bundled digits, and WORK that `must.adapt` makes of them, made once for these tests."""

import hashlib
import json
import shutil
from functools import cache
from typing import Any

import pytest

import must
from must.answers.population import record_population, shorten
from must.api import adapt as adapt_module
from must.api.demo import CLASSES, TEMPLATES, find_assets, load_digits
from must.data.format import load_index, read_hashes
from tests.once import made_once

PHOTOS, MORE = 40, 10
PROMPTS = {name: [template.format(name) for template in TEMPLATES] for name in CLASSES}
FAST = {"model": find_assets(), "train": "no", "workers": 0, "device": "cpu"}


@cache
def digits_of_the_demo():
    """[(picture, class name)]"""
    return load_digits()["validation"]


def write_photos(folder, numbers):
    folder.mkdir(parents=True, exist_ok=True)
    for number in numbers:
        digits_of_the_demo()[number][0].save(folder / f"IMG_{number:04d}.png")
    return folder


def label_of(number):
    return digits_of_the_demo()[number][1]


def adapt(place, classes=list(CLASSES), **changes):  # noqa: B006
    values = {"images": place / "photos", "classes": classes, "output": place / "work"} | FAST
    return must.adapt(**values | changes)


def checksums(folder):
    """Of all files; a folder has none."""
    paths = {str(path.relative_to(folder)): path for path in folder.rglob("*")}
    return {name: path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() for name, path in paths.items()}


def weights(work):
    return json.loads((work / "model/model.json").read_text())["weights_sha256"]


def answer(work, photos, labels, sampled="left"):
    """Answers about photos, {file name: label}, as `must review` writes them."""
    lines = [
        {"image": name, "sha256": hashlib.sha256((photos / name).read_bytes()).hexdigest(), "label": label}
        | {"sampled": sampled, "when": "2026-01-01T12:00"}
        for name, label in labels.items()
    ]
    (work / "review").mkdir(exist_ok=True)
    (work / "review/answers.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    shards = str(work / "shards")
    record_population(str(work / "review"), read_hashes(shards, load_index(shards), "train"), shorten([]))


def labels(work):
    """{file name: refined label}"""
    rows = (work / "labels/predictions.csv").read_text().splitlines()[1:]
    return {row.split(",")[0].rpartition("/")[2]: row.split(",")[1] for row in rows}


@pytest.fixture(scope="session")
def monday():
    """photos/, and work/ as the first call left it. Only read it."""

    def make(place):
        write_photos(place / "photos", range(PHOTOS))
        adapt(place)

    return made_once("monday", make)


@pytest.fixture(scope="session")
def friday(monday):
    """The same, answered, exported (work/onnx), passed by the gate, and promoted to reg/. Only read it."""

    def make(place):
        shutil.copytree(monday, place, dirs_exist_ok=True)
        work = place / "work"
        answer(work, place / "photos", {f"IMG_{n:04d}.png": label_of(n) for n in range(5)})
        must.export(model=work, limit=11)  # type: ignore[call-arg]
        must.gate(model=work, gate="none")  # type: ignore[call-arg]
        must.promote(model=work, registry=place / "reg", name="digits")

    return made_once("friday", make)


@pytest.fixture
def place(monday, tmp_path):
    shutil.copytree(monday, tmp_path / "place")  # with the files' times
    return tmp_path / "place"


@pytest.fixture
def ran(monkeypatch):
    """The stages that `must.adapt` runs, in order."""
    module: Any = adapt_module
    names, run = [], module.run
    monkeypatch.setattr(module, "run", lambda name, **values: names.append(name) or run(name, **values))
    return names
