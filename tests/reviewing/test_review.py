"""`must review` as people use it: a page on this machine, answers on the disk, and what they measure and teach."""

import http.client
import json
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from typing import Any

import pytest

from must.answers.answers_file import append, read_answers
from must.answers.review import Review
from must.data.reader import ShardReader
from must.reviewing.page import App
from must.reviewing.prepare import AnswerEffect, compute_review
from must.reviewing.review import read_corrections, review_at
from must.reviewing.review import review as must_review
from must.reviewing.session import Session
from tests.common import one_line
from tests.evaluation.digits import digits
from tests.memory.remembering import unlabeled_digits
from tests.reviewing.conftest import config_at, labels_of

SILENCE = 120  # seconds in which a program that works has long answered


@pytest.fixture
def open_page():
    """Makes pages; their programs end with the test."""
    pages = []
    yield lambda folder: pages.append(Page(folder)) or pages[-1]
    for page in pages:
        page.process.kill()
        page.process.communicate()


class Page:
    """A browser's side of `must review`, run as a program of its own."""

    def __init__(self, folder):
        config = config_at(folder)
        flags = [f"--{key}={getattr(config, key)}" for key in ("model", "baseline", "shards", "output")]
        command = [sys.executable, "-m", "must", "review", *flags, "--who", "ann"]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        first = self.process.stdout.readline()  # before any picture is looked at
        self.host, self.token = re.fullmatch(r"must review: http://([^/]+)/([\w-]{20,})/\n", first).groups()

    def ask(self, method, path, request=None, token=None):
        connection = http.client.HTTPConnection(self.host, timeout=SILENCE)
        body = request if isinstance(request, bytes | None) else json.dumps({"page": "page"} | request)
        connection.request(method, f"/{self.token if token is None else token}/{path}", body)
        reply = connection.getresponse()
        return reply.status, reply.read(), reply.headers

    def begin(self):
        """Waits until the first picture is there."""
        reply = self.post("next")
        while "wait" in reply:
            time.sleep(0.05)
            reply = self.post("next")
        return reply

    def post(self, path, **request):
        status, data, _ = self.ask("POST", path, request)
        assert status == 200, data
        return json.loads(data)

    def end(self, number=signal.SIGTERM):
        self.process.send_signal(number)
        out, err = self.process.communicate(timeout=SILENCE)
        return self.process.returncode, out + err


@pytest.mark.slow
def test_a_page_that_is_killed_goes_on_and_ends_with_what_to_do_next(open_page, folder, review):
    labels = labels_of(review)
    page = open_page(folder)
    shown = page.begin()["picture"]
    numbers = [picture.number for picture in review.pictures]
    for place in range(5):
        assert shown["number"] == numbers[place] and shown["sampled"] == "random"
        label = labels[review.pictures[place].sha256]
        shown = page.post("answer", number=numbers[place], kind="label", label=label)["picture"]
    page.end(signal.SIGKILL)

    page = open_page(folder)
    begun = page.begin()
    assert [one["number"] for one in begun["state"]["recent"]] == numbers[4::-1]
    assert begun["state"]["answers"] == 5 and begun["picture"] == shown
    again = page.post("undo")["picture"]
    assert again["number"] == numbers[4]
    page.post("answer", number=numbers[4], kind="none")
    assert page.post("answer", number=numbers[5], kind="unsure", who="bob")["state"]["answers"] == 6
    while page.post("next")["state"]["counting"]:  # the answers of before, until the pictures are read again
        time.sleep(0.05)
    code, log = page.end()
    assert code == 0 and "5 answers: " in log and "next: must refine" in log and "must select" not in log
    found = read_answers(str(folder), review.classes)
    labels_there = [found[picture.sha256].label for picture in review.pictures[3:6]]
    assert labels_there == [labels[review.pictures[3].sha256], None, None]
    lines = [json.loads(line) for line in (folder / "answers.jsonl").read_text().splitlines()]
    assert lines.pop(6) == {"classes": review.classes}, "what the answer after it is none of"
    assert [line["who"] for line in lines] == ["ann"] * 7 + ["bob"] and all(line["when"] for line in lines)
    assert lines[0]["sampled"] == "random" and lines[-1]["unsure"] and "label" not in lines[-1]
    assert lines[5]["undone"] == lines[4]["when"]
    rows = (folder / "relabelled.csv").read_text().splitlines()
    assert any(row.startswith(f"{review.pictures[4].image},") and ",ann," in row for row in rows[1:])


def test_only_who_has_the_address_gets_in_and_the_page_loads_nothing_from_elsewhere(open_page, folder):
    page = open_page(folder)
    status, data, headers = page.ask("GET", "")
    policy = headers["content-security-policy"]
    assert status == 200 and b"review.js" in data and not re.search(rb"https?://", data)
    assert "default-src 'none'" in policy and "unsafe" not in policy and headers["referrer-policy"] == "no-referrer"
    for token in ("", "x", page.token[:-1], page.token.swapcase()):
        assert page.ask("GET", "", token=token)[0] == 404
        assert page.ask("POST", "answer", {"number": 0, "kind": "none"}, token=token)[0] == 404
    assert page.ask("GET", "large/0")[2]["content-type"] in ("image/png", "image/jpeg")
    page.begin()
    for path in ("large/999999", "small/-1", "large/x", "large", "review.py", "../review.json", "answers.jsonl"):
        assert page.ask("GET", path)[0] in (400, 404), path
    long = b'{"number": 0, "kind": "none"' + b" " * 70000 + b"}"
    for request in (b"", b"[]", b"{", b"{" * 70000, b"[" * 60000, b'{"number": "0"}', b'{"number": 1e9}', long):
        assert page.ask("POST", "answer", request)[0] == 400, request[:20]
    assert page.ask("PUT", "answer", {"number": 0, "kind": "none"})[0] == 404
    right = {"number": 0, "kind": "label", "label": "one"}
    wrong: dict[str, Any]
    for wrong in ({"number": -1}, {"label": "cow"}, {"label": ["one"]}, {"kind": []}):
        assert page.ask("POST", "answer", {**right, **wrong})[0] == 400, wrong
    for wrong in ({"label": "cow"}, {"label": ["one"]}):
        assert page.ask("POST", "next", {"mode": "screens"} | wrong)[0] == 400, wrong
    for screen in (
        "x",
        ["x"],
        [["label", "one"]],
        [["label", "cow", [0]]],
        [["label", "one", ["x"]]],
        [["x", "one", []]],
    ):
        assert page.ask("POST", "answer", {"screen": screen, "right": "one"})[0] == 400, screen
    assert page.ask("POST", "undo", {})[0] == 400 and page.ask("POST", "show", {"number": 10**6})[0] == 400
    assert not (folder / "answers.jsonl").exists()
    assert page.post("leave") == {} and page.ask("POST", "gone", {})[0] == 404
    second = subprocess.run(page.process.args, capture_output=True, text=True, timeout=SILENCE, check=False)
    assert second.returncode == 73 and "another `must review`" in second.stderr
    assert page.end(signal.SIGINT)[0] == 0


def test_answers_change_similar_images_and_undoing_them_changes_them_back(review, folder, images):
    labels = labels_of(review)
    effect = AnswerEffect(config_at(folder), images)
    session = Session(review, str(folder), "ann", effect)
    wrong = {name: review.classes[(number + 1) % 10] for number, name in enumerate(review.classes)}
    shown = session.act("next", "page", {"mode": "one"})["picture"]
    for _ in range(25):  # somebody who gives every class another's name
        sha256 = session.picture(shown["number"]).sha256
        request = {"number": shown["number"], "kind": "label", "label": wrong[labels[sha256]], "mode": "one"}
        shown = session.act("answer", "page", request)["picture"]
    effect.wait()
    state = session.act("next", "page", {})["state"]
    changed = int(re.search(r"So far (\d+) labels of other pictures changed", state["text"])[1])
    assert changed >= 20
    for _ in range(25):
        session.act("undo", "page", {})
    effect.wait()
    state = session.act("next", "page", {})["state"]
    assert state["text"] == "No answers yet." and session.act("end", "page", {})["rows"] == []


def test_corrections_come_back_as_a_table_of_images_and_classes(folder, review, tmp_path, caplog, monkeypatch):
    reader = ShardReader(digits().shards, review.split)
    names = [reader.description(number)["source"] for number in range(8)]
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "renamed.png").write_bytes(reader.image(5))
    monkeypatch.chdir(tmp_path)
    drawn = review.pictures[0]
    append(folder / "answers.jsonl", {"sha256": drawn.sha256, "label": "one", "sampled": "random"})
    rows = [(names[0], "six"), (names[1], "three"), ("photos/renamed.png", "four"), (names[2], "")]
    rows += [(drawn.image, "five"), (names[3], "none of these"), (names[0], "six")]
    table = tmp_path / "corrections.csv"
    table.write_text("\ufeffid,image,class\n" + "".join(f"1,{name},{label}\n" for name, label in rows))
    for new in (5, 0):
        caplog.clear()
        must_review(config_at(folder, add=str(table)))
        assert f"{new} new answers of 5\n" in caplog.text
        assert "\nnext: must refine --model " in caplog.text
        answers = read_answers(str(folder))
        labels = {one.image: (one.label, one.sampled) for one in answers.values()}
        assert labels == {
            names[0]: ("six", "added"), names[1]: ("three", "added"), names[5]: ("four", "added"),
            names[3]: (None, "added"), drawn.image: ("five", "random"),
        }  # fmt: skip
    before = (folder / "answers.jsonl").read_bytes()
    for text, why in (
        ("image,class\n" + "".join(f"x{n},one\n" for n in range(5)), "'x0', 'x1', 'x2' and 2 more: not in the split"),
        (f"image,class\n{'x' * 300}.png,one\n", "not in the split"),
        (
            f"image,class\n{names[0]},one\n{names[1]},cow\n{names[1]},ox\n",
            "line 3: 'cow' is not a class of the model; classes: 'zero', 'one', 'two' and 7 more; also unknown: 'ox'",
        ),
        (f"image;class\n{names[0]};'sevn\n", "line 2: ''sevn' is not a class of the model; did you mean 'seven'?"),
        (f"image,class,probability\n{names[0]},one,0.9\n", "is a table of predictions, not of answers: it has the col"),
        (f"image,class,confidence\n{names[0]},one,0.9\n", "is a table of predictions, not of answers: it has the col"),
        (
            f"image,class,model_probability\n{names[0]},one,0.9\n",
            "with the columns image and class of what a person has",
        ),
        (f"image,class,zero_shot\n{names[0]},one,two\n", "is a table of predictions"),
        (f"image,label\n{names[0]},one\n", "must name the columns image and class; it is: 'image,label'"),
        (f"image,class\n{names[0]},\n", "has no row with an image and a class"),
        ("image,class\n\ud8ff", "in a spreadsheet, save it as CSV UTF-8"),
        (
            f"image,class\n{names[0]},one\n{names[0]},two\n",
            f"line 3: '{names[0]}' has another class in a line above",
        ),
        (f"image,class\na/{names[0]},one\nb/{names[1]},two\n", f"'b/{names[1]}': not in the split"),
        (f"image,class\na/{names[0]},one\n{names[1]},two\n", f"'a/{names[0]}': not in the split"),
        (
            f"image,class\n{names[5]},one\nphotos/renamed.png,two\n",
            f"'{names[5]}', 'photos/renamed.png' are one picture, and have the classes 'one', 'two'; give it one class",
        ),
        ('{"sha256": "0"}\n', "the first line must name the columns image and class; it is: "),
    ):
        table.write_bytes(text.encode("utf-16" if "\ud8ff" in text else "utf-8", "surrogatepass"))
        with one_line(re.escape(why)):
            must_review(config_at(folder, add=str(table)))
    assert (folder / "answers.jsonl").read_bytes() == before
    table.write_text("Image;Class\n" + "".join(f"/data/one/{name};one\n" for name in names))
    must_review(config_at(folder, add=str(table)))
    assert "8 new answers of 8\n" in caplog.text, "all of one folder"


@pytest.mark.parametrize("mark, first", [(";", "image;class"), ("\t", "Image\tCLASS"), (",", "id, Class ,image")])
def test_a_class_is_read_as_a_spreadsheet_writes_it(tmp_path, mark, first):
    """With semicolons or tabs, with spaces around, and with the apostrophe that stands before a name like a formula."""
    cells = ["'-none", "-none", " one ", '"two "', "none of these", "cafe\u0301"]
    places = [name.strip().lower() for name in first.split(mark)]
    table = [{"id": "7", "image": f"{n}.png", "class": cell} for n, cell in enumerate(cells)]
    text = "".join(mark.join(row[place] for place in places) + "\n" for row in table)
    (tmp_path / "c.csv").write_text(f"{first}\n{text}")
    labels = read_corrections(str(tmp_path / "c.csv"), ["-none", "one", "two", "caf\xe9"])
    assert list(labels.values()) == ["-none", "-none", "one", "two", None, "caf\xe9"]


def test_what_a_model_says_is_always_likely(monkeypatch, tmp_path):
    monkeypatch.setattr("must.reviewing.prepare.LIKELY", 2)
    monkeypatch.setattr("must.reviewing.session.BUTTONS", 5)
    review, _ = compute_review(config_at(tmp_path))
    session = Session(review, str(tmp_path), "")
    for picture in review.pictures:
        offered = session.describe(picture)["likely"]
        assert {review.classes[number] for number in picture.likely} == set(offered)
        assert offered == sorted(offered, key=review.classes.index) and picture.label in picture.likely


def test_answers_are_not_joined_to_pictures_that_came_meanwhile(tmp_path, caplog):
    """`must adapt` in another terminal, while the page is open."""
    for name, count in (("before", 60), ("after", 40)):
        (tmp_path / name).mkdir()
        unlabeled_digits(tmp_path / name, count)
    config = replace(config_at(tmp_path / "review"), shards=str(tmp_path / "before/shards"))
    review, images = compute_review(config)
    effect = AnswerEffect(config, images)
    session = Session(review, config.output, "ann", effect)
    session.act("answer", "page", {"number": review.pictures[0].number, "kind": "label", "label": "one"})
    effect.wait()
    progress, reader = effect.progress, ShardReader(config.shards, "train")
    shutil.rmtree(config.shards)
    shutil.copytree(tmp_path / "after/shards", config.shards)
    session.act("answer", "page", {"number": review.pictures[1].number, "kind": "label", "label": "one"})
    effect.wait()
    state = session.act("next", "page", {})["state"]
    assert effect.progress is progress and state["problem"].startswith("The images or the model are others now")
    assert caplog.text.count("are others now") == 1 and len(read_answers(config.output)) == 2
    with one_line("The images or the model are others now"):
        App(session, reader, "token").encode_picture(review.pictures[2].number, 100)


def test_a_review_of_another_model_or_with_another_limit_is_made_again(folder, caplog):
    config = config_at(folder)
    assert review_at(config) == Review.load(str(folder))
    append(folder / "answers.jsonl", {"sha256": "0" * 64, "label": "one"})
    assert review_at(replace(config, model=digits().zero_shot)) is None
    assert "your 1 answer is kept" in caplog.text
    part, _ = compute_review(replace(config, limit=100), Review.load(str(folder)))
    assert len(part.pictures) == 100
    every, _ = compute_review(config, part)
    assert len(every.pictures) == 150 and compute_review(config, every)[0] is every
    file = folder / "review.json"
    file.write_text(file.read_text().replace('"format":', '"format":1'))
    assert review_at(config) is None
