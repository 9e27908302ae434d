"""Digits in folders of their classes, a few of them in a wrong one."""

import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from must.answers.answers_file import NO_CLASS, OPEN, UNSURE
from must.api.demo import CLASSES, load_digits
from must.config import ReviewConfig, ShardConfig
from must.data.reader import ShardReader
from must.data.shards.build import shard
from must.memory import refine as refine_module
from must.memory.features import Pool
from must.memory.folders import find_folders, find_misplaced
from must.memory.propagate import find_neighbours
from must.model.memory import Whitening
from must.reviewing.review import read_misplaced
from tests.common import read_csv
from tests.memory.refining import answered, run

ALONE = "nine"  # the class of which there is one picture


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """(shards, {name: class} of all, those of them in a wrong folder)."""
    root, classes, wrong = tmp_path_factory.mktemp("folders"), {}, set()
    chance, alone = np.random.default_rng(0), False
    for number, (image, label) in enumerate(load_digits()["unlabeled"][:440]):
        if label == ALONE and alone:
            continue
        alone |= label == ALONE
        other = str(chance.choice([name for name in CLASSES if name not in (label, ALONE)]))
        name = f"{other if number % 22 == 0 and label != ALONE else label}/{number:04d}.png"
        if not name.startswith(label):
            wrong.add(name)
        (root / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        image.save(root / "images" / name)
        classes[name] = label
    shard(ShardConfig(source=str(root / "images"), output=str(root / "shards"), workers=1))
    return str(root / "shards"), classes, wrong


@pytest.fixture(scope="module")
def found(digits, planted, tmp_path_factory):
    folder = tmp_path_factory.mktemp("found")
    return folder, run(digits, folder, shards=planted[0])[0], read_csv(folder / "labels/folders.csv")


def test_most_of_the_planted_mistakes_are_listed_and_little_else(found, planted):
    _, summary, rows = found
    _, classes, wrong = planted
    listed = {row["image"]: row["class"] for row in rows}
    assert len(wrong & {*listed}) >= 0.8 * len(wrong) and len({*listed} - wrong) <= 0.3 * len(listed)
    assert all(listed[name] == classes[name] for name in wrong & {*listed} if name[:4] != "nine")
    assert all(row["folder"] == row["image"].split("/")[0] and row["by"] == "model" for row in rows)
    sure = [float(row["probability"]) for row in rows]
    assert sure == sorted(sure, reverse=True) and min(sure) >= 0.9
    assert summary["folders"]["wrong"] == summary["folders"]["asked"] == len(rows)
    assert summary["folders"]["text"] == f"{len(rows)} of {len(classes)} pictures seem to lie in the wrong folder"
    assert ALONE not in {row["folder"] for row in rows} | {row["class"] for row in rows}, "nothing is known of it"


def test_folders_change_neither_labels_nor_model(digits, found, planted, tmp_path, monkeypatch):
    monkeypatch.setattr(refine_module, "find_misplaced", lambda *_: None)
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels/folders.csv").write_text("of before")
    assert run(digits, tmp_path, shards=planted[0])[0]["folders"] is None
    for name in ("model/model.safetensors", "labels/predictions.csv", "labels/copies.csv"):
        assert (tmp_path / name).read_bytes() == (found[0] / name).read_bytes()
    assert not (tmp_path / "labels/folders.csv").exists()


def test_an_answer_counts_in_place_of_the_folder(digits, found, planted, tmp_path):
    shutil.copytree(found[0], tmp_path / "work")
    rows, reader = found[2], ShardReader(planted[0], "train")
    sha256s = {one["source"]: one["sha256"] for one in map(reader.description, range(len(reader)))}
    right, wrong, neither, rest = rows[0], rows[1], rows[2], rows[3:]
    said = [(right, right["folder"]), (wrong, wrong["class"]), (neither, None)]
    given = answered(tmp_path / "answers", [(row["image"], sha256s[row["image"]], label) for row, label in said],
                     sampled="folder", shards=planted[0])  # fmt: skip
    summary, _ = run(digits, tmp_path / "work", shards=planted[0], answers=given)
    after = {row["image"]: row for row in read_csv(tmp_path / "work/labels/folders.csv")}
    assert right["image"] not in after
    for row, label in ((wrong, wrong["class"]), (neither, "none of these")):
        one = after[row["image"]]
        assert (one["class"], one["probability"], one["by"]) == (label, "1.000000", "person: ann")
    assert summary["folders"]["asked"] == summary["folders"]["wrong"] - 2 and len(after) >= 0.8 * len(rest)


def read(folder, shards, review):
    places = {"model": str(folder / "model"), "shards": shards, "output": str(folder / "review")}
    return read_misplaced(ReviewConfig(**places, baseline="classifier.safetensors"), review)


def test_the_page_is_given_those_of_its_own_model_only(digits, planted, tmp_path):
    shutil.copytree(planted[0], tmp_path / "shards")
    shutil.copy(digits.classifier, tmp_path / "classifier.safetensors")
    summary, _ = run(digits, tmp_path, shards=str(tmp_path / "shards"))
    rows, shards = read_csv(tmp_path / "labels/folders.csv"), str(tmp_path / "shards")
    pictures = [SimpleNamespace(image=row["image"], sha256=f"of {row['image']}") for row in rows]
    review = SimpleNamespace(model_sha256=summary["weights_sha256"], pictures=pictures[::-1])
    expected = {f"of {row['image']}": (row["folder"], row["class"]) for row in rows}
    assert [*read(tmp_path, shards, review).items()] == [*expected.items()], "the surest first"
    for table in ("image,folder\n", "", "\0\n", "image,folder,class,by\na,b\n"):
        (tmp_path / "labels/folders.csv").write_text(table)
        assert read(tmp_path, shards, review) == {}
    review.model_sha256 = "of another one"
    assert read(tmp_path, shards, review) == {}


def test_folders_are_known_by_the_names_of_classes():
    names = ["zero/1.png", "a/one/b/2.png", "one/zero/3.png", "none/4.png", "5.png", "one.png", "e\u0301/6.png"]
    classes = ["zero", "one", "\xe9"]
    assert find_folders(names, classes).tolist() == [0, 1, 1, OPEN, OPEN, OPEN, 2]
    assert set(find_folders([*names, "7.png"], classes).tolist()) == {OPEN}, "half are no more than half"
    assert not len(find_folders([], classes))


def make_pool(count, classes):
    """Pictures of so many classes that look quite different, in turn, and a model that knows nothing of them."""
    chance = np.random.default_rng(0)
    true = np.arange(count) % classes
    vectors = torch.from_numpy(np.eye(8)[true] + 0.3 * chance.normal(size=(count, 8))).float()
    P = torch.full((count, classes), 1 / classes).half()
    part = Whitening(torch.eye(4).half(), torch.zeros(4))
    vectors = torch.nn.functional.normalize(vectors, dim=1).half()
    return Pool(torch.arange(count), [], vectors, P, P[None][:0], part, part), true


def find(pool, names, classes, said=None):
    said = np.full(len(names), OPEN) if said is None else said
    near = find_neighbours(pool, torch.device("cpu"))
    return find_misplaced(pool, near, said, names, np.arange(len(names)), classes, ["model"] * len(names))


def test_pictures_in_other_folders_are_counted():
    pool, true = make_pool(120, 2)
    names = [f"{'cat' if label else 'dog'}/{number}.png" for number, label in enumerate(true)]
    names[:3] = ["0.png", "Cat/1.png", "unsorted/2.png"]
    summary, _ = find(pool, names, ["cat", "dog"])
    more = " (not checked: 3 in no folder of a class)"
    assert summary["text"] == f"0 of 117 pictures seem to lie in the wrong folder{more}"


def test_hostile_names_and_folders_with_few_pictures_or_none():
    pool, true = make_pool(120, 2)
    classes = ["=cmd|' calc'!A0", '<img src=x>"\n,']
    names = [f"{classes[label]}/{number}.png" for number, label in enumerate(true)]
    names[0] = f"{classes[1]}/0.png"
    summary, table = find(pool, names, classes)
    assert summary == {"wrong": 1, "asked": 1, "text": "1 of 120 pictures seems to lie in the wrong folder"}
    assert table.decode().splitlines()[0] == "image,folder,class,probability,by"
    assert b",'=cmd|' calc'!A0," in table and b'"<img src=x>""' in table
    said = np.full(120, OPEN)
    said[0], said[1] = UNSURE, NO_CLASS
    summary, table = find(pool, names, classes, said)
    assert (summary["wrong"], summary["asked"]) == (2, 1) and b",none of these,1.000000," in table
    only = [f"{classes[0]}/{number}.png" for number in range(120)]
    assert find(pool, only, classes)[0]["wrong"] == 0, "one folder has all pictures"
    few = [f"{classes[number in (1, 3, 5, 7)]}/{number}.png" for number in range(120)]
    assert find(pool, few, classes)[0]["wrong"] == 0, "four pictures are too few"
    assert find(pool, [f"{number}.png" for number in range(120)], classes) is None
