"""Labels to other tools and back. What these tools write was recorded from them: label-studio-sdk's converter, and
FiftyOne's exporters."""

import csv
import json

import numpy as np
import pytest

import must
from must.deploy.labels.formats import read_labels
from tests.deploy.labels.test_sort import photos

ROWS = {"a.png": ("cat", 0.9, "dog"), "b.png": ("dog", 0.6, "cat"), "=c.png": ("cat", 0.8, "dog")}


@pytest.fixture
def predicted(tmp_path, monkeypatch):
    """Predictions of three images with both classes, as `must predict --top-k 2` writes them; in the current folder."""
    monkeypatch.chdir(tmp_path)
    photos(tmp_path, ROWS)
    lines = ["image,class,probability,class_2,probability_2"]
    lines += [f"{'' if n[0] != '=' else chr(39)}{n},{a},{p:.6f},{b},{1 - p:.6f}" for n, (a, p, b) in ROWS.items()]
    (tmp_path / "p.csv").write_text("\n".join(lines) + "\n")
    return tmp_path


def said(folder, name):
    return {one.image: one.label for one in read_labels(str(folder / name))}


def annotated(task, number, choice, **more):
    """A task as Label Studio exports it when a person has chosen."""
    value = {"id": f"x{number}", "from_name": "class", "to_name": "image", "type": "choices", "origin": "manual"}
    annotation = {"id": number, "completed_by": 1, "was_cancelled": False, "updated_at": "2026-11-26T20:00:01Z"}
    annotation["result"] = [value | {"value": {"choices": [choice]}}]
    return {**task, "id": number, "annotations": [annotation | more]}


def test_there_and_back_through_label_studio(predicted):
    made = must.labels(labels="p.csv", to="label-studio", output="tasks.json", classes=["dog", "cat"])
    assert (made.images, made.labelled) == (3, 3)
    tasks = json.loads((predicted / "tasks.json").read_text())
    assert tasks[0]["data"]["must_image"] == "a.png"
    assert tasks[2]["data"]["image"].endswith("/%3Dc.png") and tasks[2]["data"]["must_image"] == "=c.png"
    assert tasks[0]["predictions"][0]["result"][0]["value"] == {"choices": ["cat"]}
    assert (predicted / "tasks.xml").read_text().index('"dog"') < (predicted / "tasks.xml").read_text().index('"cat"')

    export = [annotated(tasks[0], 1, "dog"), annotated(tasks[1], 2, "none of these")]
    export.append(annotated(tasks[2], 3, "dog", was_cancelled=True))
    (predicted / "export.json").write_text(json.dumps(export))
    small = [task["data"] | {"id": task["id"], "annotator": 1} for task in export]
    small[0]["class"], small[1]["class"] = "dog", "none of these"
    (predicted / "min.json").write_text(json.dumps(small))
    with (predicted / "export.csv").open("w") as file:
        table = csv.DictWriter(file, ["annotator", "class", "id", "image", "must_image"], quoting=csv.QUOTE_ALL)
        table.writeheader()
        table.writerows({"class": ""} | row for row in small)
    expected = {"a.png": "dog", "b.png": None}
    for name in ("export.json", "min.json", "export.csv"):
        assert said(predicted, name) == expected, name

    assert must.labels(labels="export.json", to="answers", output="answers.jsonl").images == 2
    first = json.loads((predicted / "answers.jsonl").read_text().splitlines()[0])
    assert first["label"] == "dog" and first["who"] == "1" and first["when"] == "2026-11-26T20:00:01Z"
    assert len(first["sha256"]) == 64
    for named_only, expected in ((True, {"dog": "a.png"}), (False, {"dog": "a.png", "none of these": "b.png"})):
        into = predicted / str(named_only)
        must.sort(labels="answers.jsonl", into=into, named_only=named_only)
        assert {path.parent.name: path.name for path in into.rglob("*.png")} == expected


def test_an_address_of_the_web_stays_what_it_is(predicted):
    task = annotated({"data": {"image": "https://example.com/a.png"}}, 1, "dog")
    (predicted / "web.json").write_text(json.dumps([task]))
    for root in ("", "photos"):
        for form, name in {"label-studio": "to.json", "answers": "to.jsonl", "csv": "to.csv"}.items():
            must.labels(labels="web.json", to=form, output=name, root=root)
            assert said(predicted, name) == {"https://example.com/a.png": "dog"}
    with pytest.raises(ValueError, match="none of its 1 images is there"):
        must.sort(labels="web.json", into="sorted")


def test_there_and_back_through_fiftyone(predicted):
    must.labels(labels="p.csv", to="fiftyone", output="fo")
    labels, paths = (json.loads((predicted / "fo" / name).read_text()) for name in ("labels.json", "data.json"))
    assert labels["classes"] == ["cat", "dog", "none of these"]
    assert labels["labels"]["00000001"] == {"label": "dog", "confidence": 0.6}
    assert paths["00000001"] == str(predicted / "b.png")
    assert said(predicted, "fo") == {str(predicted / name): row[0] for name, row in ROWS.items()}
    assert must.sort(labels="fo", into="sorted").placed == 3
    for content in (
        {"classes": None, "labels": {"a.png": "dog", "b.png": "none of these"}},
        {"classes": ["cat", "dog", "none of these"], "labels": {"a.png": 1, "b.png": 2}},
        {"samples": [{"filepath": "a.png", "ground_truth": {"label": "dog"}, "predictions": {"label": "cat"}}]},
    ):
        (predicted / "export.json").write_text(json.dumps(content))
        assert {"a.png": "dog", "b.png": None}.items() >= said(predicted, "export.json").items()


def test_cleanlab_has_numbers_for_all_classes(predicted):
    for name in ("c.json", "c.parquet"):
        must.labels(labels="p.csv", to="cleanlab", output=name)
    found = json.loads((predicted / "c.json").read_text())
    assert (found["classes"], found["labels"], found["images"]) == (["cat", "dog"], [0, 1, 0], [*ROWS])
    np.testing.assert_allclose(found["pred_probs"], [[0.9, 0.1], [0.4, 0.6], [0.8, 0.2]])
    parquet = pytest.importorskip("pyarrow.parquet").read_table(predicted / "c.parquet")
    assert parquet["pred_probs"].to_pylist() == found["pred_probs"] and parquet["label"].to_pylist() == [0, 1, 0]
    with pytest.raises(ValueError, match="has no labels by people"):
        must.labels(labels="c.json", to="csv", output="no.csv")
    (predicted / "one.csv").write_text("image,class,probability\na.png,cat,0.9\nb.png,dog,0.6\n")
    with pytest.raises(ValueError, match="probabilities of 1 of 2 classes; predict with --top-k 2"):
        must.labels(labels="one.csv", to="cleanlab", output="no.json")
    assert not (predicted / "no.json").exists()


def test_answers_are_what_people_said(predicted):
    lines = [
        {"image": "a.png", "label": "dog", "who": "me"},
        {"image": "b.png", "unsure": True},
        {"image": "=c.png", "label": None},
        {"image": "a.png", "label": "cat", "who": "you"},
    ]
    (predicted / "answers.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert said(predicted, "answers.jsonl") == {"a.png": "cat", "b.png": None, "=c.png": None}, "the last one counts"
    must.labels(labels="answers.jsonl", to="label-studio", output="tasks.json")
    tasks = json.loads((predicted / "tasks.json").read_text())
    assert [len(task.get("annotations", ())) for task in tasks] == [1, 0, 1], "a person's word is no prediction"
    must.labels(labels="answers.jsonl", to="csv", output="l.csv")
    assert (predicted / "l.csv").read_text() == "image,label\na.png,cat\n'=c.png,none of these\n"
    assert said(predicted, "l.csv") == {"a.png": "cat", "=c.png": None}
    with pytest.raises(ValueError, match="predictions only; give a file with people's labels"):
        must.labels(labels="p.csv", to="answers", output="no.jsonl")
    with pytest.raises(ValueError, match=r"no\.json: answers are read from files called \.jsonl"):
        must.labels(labels="p.csv", to="answers", output="no.json")


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("x.json", "{", "is no JSON"),
        ("x.json", '{"a": 1}', "is no export of Label Studio or FiftyOne"),
        ("x.json", "[]", "holds no labels"),
        ("x.json", "[1]", "is damaged, or of a format that is not known"),
        ("x.json", '{"labels": {"a": -1}, "classes": ["cat", "dog"]}', "-1 is the number of no class"),
        ("x.json", '{"labels": {"a": ["cat"]}, "classes": []}', "a label that is no text"),
        (
            "x.json",
            '{"samples": [{"filepath": null, "label": {"label": "cat"}}]}',
            "an image or a label that is no text",
        ),
        ("x.jsonl", '{"image": "a"}\n', "line 1 names no image and label"),
        ("x.jsonl", "x\n", "line 1 is no JSON"),
        ("x.jsonl", '{"image": "a", "label": 3}\n', "the label is no text"),
        ("x.jsonl", '{"image": "a", "predictions": [{"class": "b", "probability": 1%s}]}' % ("0" * 400), "Overflow"),
        ("x.csv", "a;b\n1;2\n", "it is: 'a;b'"),
        ("x.csv", "image,class,probability\na,b,c\n", "is damaged, or of a format that is not known"),
        ("x.csv", "image,label\n" + "a" * 200_000 + ",b\n", "is not known: field larger than field limit"),
        ("x.csv", "image,class,probability\na,b,nan\n", "'a': nan is no probability"),
        ("x.csv", "image,class,probability\na,b,1e999\n", "inf is no probability; it must be from 0 to 1"),
        ("x.csv", b"\xff\xfe\x00", "no text in UTF-8"),
    ],
)
def test_foreign_and_damaged_files_are_one_line(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=message) as error:
        must.labels(labels=tmp_path / name, to="csv", output=tmp_path / "out.csv")
    assert "\n" not in str(error.value) and not (tmp_path / "out.csv").exists()
