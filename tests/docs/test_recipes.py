"""The recipes of docs/labels.md, run with the tools' own packages where these are installed (`make test-labels`)."""

import csv
import importlib.util
import json
import os

import pytest
from PIL import Image

from tests.common import ROOT, read_csv
from tests.docs.blocks import blocks

RECIPES = [block.text for block in blocks(ROOT / "docs/labels.md") if block.language == "python"]
CLASSES = ("cat", "dog")


@pytest.fixture
def predicted(tmp_path, monkeypatch):
    """predictions.csv of 40 images, of which the fourth is in the folder of another class."""
    monkeypatch.chdir(tmp_path)
    rows = []
    for number in range(40):
        name, other = CLASSES[number % 2], CLASSES[1 - number % 2]
        folder = tmp_path / "photos" / (other if number == 3 else name)
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4), (number, 0, 0)).save(folder / f"{number}.png")
        rows.append([(folder / f"{number}.png").relative_to(tmp_path), name, 0.95, other, 0.05])
    with open("predictions.csv", "w", newline="") as file:
        csv.writer(file).writerows([["image", "class", "probability", "class_2", "probability_2"], *rows])
    return tmp_path


def run(number):
    exec(compile(RECIPES[number], "docs/labels.md", "exec"), {})


def needs(package):
    there = importlib.util.find_spec(package) or "REQUIRE_LABEL_TOOLS" in os.environ
    return pytest.mark.skipif(not there, reason=f"not here: {package} (make test-labels)")


def test_recipes_are_short_and_python():
    for recipe in RECIPES:
        compile(recipe, "docs/labels.md", "exec")
        assert len(recipe.splitlines()) <= 16


@needs("label_studio_sdk")
def test_label_studio_takes_the_tasks_and_its_table_comes_back(predicted):
    run(0)
    from label_studio_sdk.converter import Converter
    from label_studio_sdk.label_interface import LabelInterface

    tasks, config = json.loads((predicted / "tasks.json").read_text()), (predicted / "interface.xml").read_text()
    interface = LabelInterface(config)
    assert all(interface.validate_prediction(prediction) for task in tasks for prediction in task["predictions"])
    for number, task in enumerate(tasks[:2]):
        result = [{**region, "value": {"choices": ["dog"]}} for region in task.pop("predictions")[0]["result"]]
        task |= {"id": number, "annotations": [{"id": number, "completed_by": 1, "result": result}]}
    (predicted / "export.json").write_text(json.dumps(tasks[:2]))
    places = str(predicted / "export.json"), str(predicted / "out")
    Converter(config, str(predicted)).convert_to_csv(*places, is_dir=False, header=True, sep=",")
    rows = [(row["image"], row["class"]) for row in read_csv(next((predicted / "out").glob("*.csv")))]
    assert rows == [("photos/cat/0.png", "dog"), ("photos/dog/1.png", "dog")]


@needs("cleanlab")
def test_cleanlab_finds_the_image_in_the_wrong_folder(predicted):
    run(3)
    assert (predicted / "suspects.csv").read_text().split() == ["image,class", "photos/cat/3.png,dog"]


@pytest.mark.slow
@needs("fiftyone")
def test_tags_of_fiftyone_come_back(predicted, monkeypatch):
    monkeypatch.setenv("FIFTYONE_DATABASE_DIR", str(predicted / "database"))
    import fiftyone

    monkeypatch.setattr(fiftyone, "launch_app", lambda dataset: None)
    run(1)
    sample = fiftyone.load_dataset("photos").first()
    sample.tags.append("dog")
    sample.save()
    run(2)
    fiftyone.delete_dataset("photos")
    assert (predicted / "corrections.csv").read_text().split() == ["image,class", f"{sample.filepath},dog"]
