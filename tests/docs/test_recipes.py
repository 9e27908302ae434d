"""The recipes of docs/labels.md, run with the tools' own packages where these are installed (`make test-labels`)."""

import base64
import csv
import importlib.util
import io
import json
import os
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

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
        assert len(recipe.splitlines()) <= 26


@needs("label_studio_sdk")
@pytest.mark.filterwarnings("ignore:The `dict` method is deprecated:DeprecationWarning")  # with pydantic 2.14
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


class Reviewer(BaseHTTPRequestHandler):
    """Answers requests that openai's own types allow: "1" about a red picture, else a sentence."""

    def do_POST(self):
        from openai.types.chat import ChatCompletion
        from openai.types.chat.completion_create_params import CompletionCreateParamsNonStreaming
        from pydantic import TypeAdapter

        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        TypeAdapter(CompletionCreateParamsNonStreaming).validate_python(request)
        text, picture = request["messages"][0]["content"]
        assert self.path == "/v1/chat/completions" and text["text"].endswith("0: cat; 1: dog; 2: none of these")
        data = base64.b64decode(picture["image_url"]["url"].partition("base64,")[2])
        said = " 1.\n" if Image.open(io.BytesIO(data)).getpixel((0, 0))[0] > 20 else "It is a cat."
        choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": said}}
        reply = {"id": "1", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice]}
        body = json.dumps(ChatCompletion.model_validate(reply).model_dump()).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@needs("openai")
def test_a_vision_model_answers_about_the_least_sure_labels(predicted, monkeypatch):
    rows = read_csv(predicted / "predictions.csv")
    (predicted / "work/labels").mkdir(parents=True)
    (predicted / "classes.txt").write_text("cat\ndog\n")
    with open("work/labels/predictions.csv", "w", newline="") as file:
        table = [
            [row["image"].removeprefix("photos/"), "cat", n / 40, str(n > 25).lower()] for n, row in enumerate(rows)
        ]
        csv.writer(file).writerows([["image", "class", "probability", "accepted"], *table])
    with ThreadingHTTPServer(("127.0.0.1", 0), Reviewer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("REVIEWER_URL", f"http://127.0.0.1:{server.server_port}/v1")
        monkeypatch.setenv("REVIEWER_MODEL", "m")
        run(3)
        server.shutdown()
    found = read_csv(predicted / "corrections.csv")
    assert [row["image"] for row in found] == [f"{CLASSES[n % 2]}/{n}.png" for n in range(21, 26)]
    assert {row["class"] for row in found} == {"dog"}


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
