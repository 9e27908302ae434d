"""`must review` as people use it: a page on this machine, answers on the disk, and what they measure and teach."""

import http.client
import json
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from typing import Any

import pytest

from must.data.loading.reader import ShardReader
from must.deploy.review.corrections import read_corrections
from must.deploy.review.prepare import AnswerEffect, Images, compute_reviews
from must.deploy.review.review import review as must_review
from must.deploy.review.review import review_at
from must.deploy.review.session import Session
from must.method.answers.answers_file import append, read_answers
from must.method.answers.review import Review
from tests.common import one_line
from tests.deploy.review.conftest import config_at, labels_of
from tests.evaluation.digits import digits

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
        assert shown["number"] == numbers[place] and len(shown["similar"]) == 6 and shown["sampled"] == "random"
        label = labels[review.pictures[place].sha256]
        shown = page.post("answer", number=numbers[place], kind="label", label=label)["picture"]
    page.end(signal.SIGKILL)

    page = open_page(folder)
    begun = page.begin()
    assert [one["number"] for one in begun["state"]["recent"]] == numbers[4::-1]
    assert begun["state"]["answers"] == 5 and begun["picture"] == shown
    assert "5 answers: zero-shot " in begun["state"]["text"]
    again = page.post("undo")["picture"]
    assert again["number"] == numbers[4]
    page.post("answer", number=numbers[4], kind="none")
    assert page.post("answer", number=numbers[5], kind="unsure", who="bob")["state"]["answers"] == 6
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
    for wrong in ({"number": -1}, {"label": "cow"}, {"label": ["one"]}, {"kind": []}, {"also": "x"}, {"also": [-1]}):
        assert page.ask("POST", "answer", {**right, **wrong})[0] == 400, wrong
    for wrong in ({"label": "cow"}, {"label": ["one"]}, {"sort": []}):
        assert page.ask("POST", "grid", wrong)[0] == 400, wrong
    assert page.ask("POST", "undo", {})[0] == 400 and page.ask("POST", "show", {"number": 10**6})[0] == 400
    assert not (folder / "answers.jsonl").exists()
    assert page.post("leave") == {} and page.ask("POST", "gone", {})[0] == 404
    second = subprocess.run(page.process.args, capture_output=True, text=True, timeout=SILENCE, check=False)
    assert second.returncode == 73 and "another `must review`" in second.stderr
    assert page.end(signal.SIGINT)[0] == 0


def test_questions_begin_with_some_images_and_the_others_follow_in_a_random_order(tmp_path, monkeypatch, prepared):
    monkeypatch.setattr("must.deploy.review.prepare.FIRST_IMAGES", 20)
    (first, few), (whole, every) = compute_reviews(config_at(tmp_path))
    assert first.coverage == [] and len(whole.coverage) == 130, "the first twenty questions are drawn at random"
    assert len(few.numbers) == first.images == 20 and len(every.numbers) == whole.images == 150
    order = [picture.sha256 for picture in whole.pictures]
    assert order[:20] == [picture.sha256 for picture in first.pictures] and len(set(order)) == 150
    assert {picture.sha256 for picture in Review.load(str(prepared)).pictures} == set(order)
    ((again, _),) = compute_reviews(config_at(tmp_path), first)
    assert [picture.sha256 for picture in again.pictures] == order, "as if it had not been stopped"
    session = Session(first, str(tmp_path), "ann")
    shown = session.next("page")["picture"]
    session.answer("page", {"number": shown["number"], "kind": "none"})
    session.set_review(whole, None)
    shown = session.next("page")["picture"]
    assert shown["number"] == whole.pictures[1].number and session.state("page")["of"] == 150
    session.set_review(replace(whole, pictures=whole.pictures[2:], coverage=[]), None)  # without what the page shows
    assert session.undo("page", {})["picture"]["number"] == whole.pictures[0].number
    assert session.answer("page", {"number": shown["number"], "kind": "none"})["picture"]


def test_answers_change_similar_images_and_undoing_them_changes_them_back(review, folder):
    labels = labels_of(review)
    effect = AnswerEffect(Images.load(str(folder)))
    session = Session(review, str(folder), "ann", effect)
    wrong = {name: review.classes[(number + 1) % 10] for number, name in enumerate(review.classes)}
    shown = session.next("page")["picture"]
    for _ in range(25):  # somebody who gives every class another's name
        sha256 = session.picture(shown["number"]).sha256
        request = {"number": shown["number"], "kind": "label", "label": wrong[labels[sha256]]}
        shown = session.answer("page", request)["picture"]
    effect.wait()
    state = session.next("page")["state"]
    changed = int(re.search(r"So far (\d+) of 125 other refined labels changed", state["text"])[1])
    assert changed >= 20
    for _ in range(25):
        session.undo("page", {})
    effect.wait()
    state = session.next("page")["state"]
    assert state["text"] == "No answers yet." and session.end("page")["rows"] == []


def test_corrections_come_back_as_a_table_of_images_and_classes(folder, review, tmp_path, caplog, monkeypatch):
    reader = ShardReader(review.shards, review.split)
    names = [reader.description(number)["source"] for number in range(8)]
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "renamed.png").write_bytes(reader.image(5))
    monkeypatch.chdir(tmp_path)
    drawn = review.pictures[0]
    append(folder / "answers.jsonl", {"sha256": drawn.sha256, "label": "one", "sampled": "random"})
    rows = [(names[0], "two"), (f"photos/{names[1]}", "three"), ("photos/renamed.png", "four"), (names[2], "")]
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
        ("image,class\n\ud8ff", "is no CSV file in UTF-8"),
        ('{"sha256": "0"}\n', "the first line must name the columns image and class; it is: "),
    ):
        table.write_bytes(text.encode("utf-16" if "\ud8ff" in text else "utf-8", "surrogatepass"))
        with one_line(re.escape(why)):
            must_review(config_at(folder, add=str(table)))
    assert (folder / "answers.jsonl").read_bytes() == before


def test_a_class_is_read_as_a_spreadsheet_writes_it(tmp_path):
    """With semicolons, with spaces around, and with the apostrophe that stands before a name like a formula."""
    cells = ["'-none", "-none", " one ", '"two "', "none of these"]
    (tmp_path / "c.csv").write_text("image;class\n" + "".join(f"{n}.png;{cell}\n" for n, cell in enumerate(cells)))
    labels = read_corrections(str(tmp_path / "c.csv"), ["-none", "one", "two"])
    assert list(labels.values()) == ["-none", "-none", "one", "two", None]


def test_copies_of_a_file_are_asked_about_once_and_what_a_model_says_is_always_likely(monkeypatch, tmp_path):
    monkeypatch.setattr("must.deploy.review.prepare.LIKELY", 2)
    monkeypatch.setattr("must.deploy.review.session.BUTTONS", 5)
    monkeypatch.setattr("must.deploy.review.prepare.fingerprint", lambda data: f"{data[-20] % 7:064x}")
    *_, (review, images) = compute_reviews(config_at(tmp_path))
    assert len(review.pictures) <= 7 < len(images.numbers) == review.images == 150
    assert {*review.coverage} <= {picture.number for picture in review.pictures}
    session = Session(review, str(tmp_path), "")
    for picture in review.pictures:
        offered = session.describe(picture)["likely"]
        assert {review.classes[number] for number in picture.likely} == set(offered)
        assert offered == sorted(offered, key=review.classes.index) and set(picture.classes[:2]) <= set(picture.likely)


def test_a_review_of_another_model_is_made_again_and_damaged_files_are_one_line(folder, caplog):
    config = config_at(folder)
    assert review_at(config) == Review.load(str(folder))
    assert review_at(replace(config, model=digits().zero_shot)) is None
    assert "another model or other images than before: all are looked at again" in caplog.text
    file = folder / "review.safetensors"
    for damage in (lambda: file.write_bytes(file.read_bytes()[:-100]), file.unlink):
        damage()
        with pytest.raises(ValueError, match=r"review\.safetensors: is missing or damaged; delete review\.json"):
            Images.load(str(folder))
