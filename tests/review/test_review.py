"""`must review` as people use it: a page on this machine, answers on the disk, and what they measure and teach."""

import http.client
import json
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from must.config import ReviewConfig
from must.data.loading.reader import ShardReader
from must.deploy.review.page import self_contained
from must.deploy.review.pictures import Pictures
from must.deploy.review.prepare import prepare
from must.deploy.review.review import review_at, what_next
from must.deploy.review.session import PATIENCE, Session
from must.deploy.review.teaching import Images, Teaching
from must.method.answers.book import read_answers
from must.method.answers.review import DOUBTFUL, Review
from tests.evaluation.digits import digits

SILENCE = 120  # seconds in which a program that works has long answered


def config_at(folder, **more):
    made = digits()
    places = {"model": made.adapted, "baseline": made.classifier, "shards": made.shards, "output": str(folder)}
    return ReviewConfig(**places, workers=0, device="cpu", **more)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A folder with review.json and review.safetensors, made once; tests copy it."""
    folder = tmp_path_factory.mktemp("review")
    review_at(config_at(folder))
    return folder


@pytest.fixture
def folder(prepared, tmp_path):
    shutil.copytree(prepared, tmp_path / "review")
    return tmp_path / "review"


@pytest.fixture
def review(folder):
    return Review.load(str(folder))


def labels_of(review):
    reader = ShardReader(review.shards, review.split)
    return {picture.sha256: reader.description(picture.number)["label"] for picture in review.pictures}


@pytest.fixture
def open_page():
    """Makes pages; their programs end with the test."""
    pages = []
    yield lambda *given: pages.append(Page(*given)) or pages[-1]
    for page in pages:
        page.process.kill()
        page.process.communicate()


class Page:
    """A browser's side of `must review`, run as a program of its own."""

    def __init__(self, folder, name="page"):
        config, self.name = config_at(folder), name
        flags = [
            word for key in ("model", "baseline", "shards", "output") for word in (f"--{key}", getattr(config, key))
        ]
        command = [sys.executable, "-m", "must", "review", *flags, "--who", "ann"]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        first = self.process.stdout.readline()
        self.host, self.token = re.fullmatch(r"must review: http://([^/]+)/([\w-]{20,})/\n", first).groups()

    def ask(self, method, path, said=None, token=None):
        connection = http.client.HTTPConnection(self.host, timeout=SILENCE)
        body = None if said is None else said if isinstance(said, bytes) else json.dumps({"page": self.name} | said)
        connection.request(method, f"/{self.token if token is None else token}/{path}", body)
        reply = connection.getresponse()
        return reply.status, reply.read(), reply.headers

    def post(self, path, **said):
        status, data, _ = self.ask("POST", path, said)
        assert status == 200, data
        return json.loads(data)

    def end(self, number=signal.SIGTERM):
        self.process.send_signal(number)
        out, err = self.process.communicate(timeout=SILENCE)
        return self.process.returncode, out + err


def test_a_page_that_is_killed_goes_on_and_ends_with_what_to_do_next(open_page, folder, review):
    labels = labels_of(review)
    page = open_page(folder)
    shown = page.post("next")["picture"]
    for _ in range(5):
        position = shown["position"]
        assert shown["names"] == review.classes and len(shown["similar"]) == 6
        said = labels[review.pictures[position].sha256]
        shown = page.post("answer", position=position, kind="label", label=said)["picture"]
    page.end(signal.SIGKILL)

    page = open_page(folder)
    begun = page.post("next")
    assert begun["state"]["answers"] == 5 and begun["picture"] == shown
    assert "5 answers: zero-shot " in begun["state"]["text"]
    again = page.post("undo", position=4)["picture"]
    assert again["position"] == 4
    page.post("answer", position=4, kind="none")
    page.post("answer", position=5, kind="unsure", who="bob")
    code, log = page.end()
    assert code == 0 and "5 answers: " in log and "next: must select" in log and "next: must refine" in log
    found = read_answers(str(folder), review.classes)
    labels_there = [found[picture.sha256].label for picture in review.pictures[3:6]]
    assert labels_there == [labels[review.pictures[3].sha256], None, None]
    lines = [json.loads(line) for line in (folder / "answers.jsonl").read_text().splitlines()]
    assert [line["who"] for line in lines] == ["ann"] * 7 + ["bob"] and all(line["when"] for line in lines)
    assert lines[0]["shown"] and lines[-1]["unsure"] and "label" not in lines[-1]
    rows = (folder / "relabelled.csv").read_text().splitlines()
    assert any(row.startswith(f"{review.pictures[4].image},") and ",ann," in row for row in rows[1:])


def test_only_who_has_the_address_gets_in_and_the_page_loads_nothing_from_elsewhere(open_page, folder):
    page = open_page(folder)
    status, data, headers = page.ask("GET", "")
    policy = headers["content-security-policy"]
    assert status == 200 and b"review.js" in data and not re.search(rb"https?://", data)
    assert "default-src 'none'" in policy and "unsafe" not in policy and headers["referrer-policy"] == "no-referrer"
    for token in ("", "x", page.token[:-1], page.token.swapcase()):
        assert page.ask("GET", "start", token=token)[0] == 404
        assert page.ask("POST", "answer", {"position": 0, "kind": "none"}, token=token)[0] == 404
    assert page.ask("GET", "large/0")[2]["content-type"] in ("image/png", "image/jpeg")
    for path in ("large/999999", "small/-1", "large/x", "large", "review.py", "../review.json", "answers.jsonl"):
        assert page.ask("GET", path)[0] in (400, 404), path
    for said in (b"", b"[]", b"{", b"{" * 70000, b"[" * 60000, b'{"position": "0"}', b'{"position": 1e9}'):
        assert page.ask("POST", "answer", said)[0] == 400, said[:20]
    for said in ({"position": -1}, {"position": 0, "kind": "label", "label": "cow"}, {"position": 0, "kind": []}):
        assert page.ask("POST", "answer", said)[0] == 400
    assert page.ask("POST", "answer", {"position": 0, "kind": "label", "label": ["one"]})[0] == 400
    assert not (folder / "answers.jsonl").exists()
    assert page.post("next")["picture"]["position"] == 0
    page.name = "another"
    assert page.post("next")["picture"]["position"] == 1
    assert page.post("leave") == {} and page.ask("POST", "gone", {})[0] == 404
    page.name = "third"
    assert page.post("next")["picture"]["position"] == 1
    second = subprocess.run(page.process.args, capture_output=True, text=True, timeout=SILENCE, check=False)
    assert second.returncode == 73 and "another `must review`" in second.stderr
    assert page.end(signal.SIGINT)[0] == 0


def test_two_pages_show_different_pictures_and_one_that_is_left_holds_nothing_up(review, folder):
    now = [0.0]
    session = Session(review, str(folder), "", clock=lambda: now[0])
    ann, bob = session.next("ann")["picture"], session.next("bob")["picture"]
    assert (ann["position"], bob["position"]) == (0, 1) and session.next("ann")["picture"] == ann
    reply = session.answer("bob", 1, {"kind": "none"})
    assert reply["picture"]["position"] == 2 and reply["state"]["text"].startswith("1 answers"), "a gap ends no count"
    session.leave("ann")
    assert session.next("eve")["picture"]["position"] == 0
    now[0] = PATIENCE + 1
    assert session.next("bob")["picture"]["position"] == 0
    session.answer("bob", 0, {"kind": "unsure"})
    assert session.review.measured(session.answers).answers == 1


def test_answers_change_similar_images_and_undoing_them_changes_them_back(review, folder):
    labels = labels_of(review)
    teaching = Teaching(Images.load(str(folder)))
    session = Session(review, str(folder), "ann", teaching)
    wrong = {name: review.classes[(number + 1) % 10] for number, name in enumerate(review.classes)}
    for position in range(25):  # somebody who gives every class another's name
        label = wrong[labels[review.pictures[position].sha256]]
        session.answer("page", position, {"kind": "label", "label": label})
    teaching.wait()
    state = session.next("page")["state"]
    (ten, twenty) = state["curve"]
    assert [ten[0], twenty[0]] == [10, 20] and twenty[1] >= 10 and ten[3] <= ten[2] <= ten[4]
    changed = int(re.search(r"25 answers: (\d+) of 125 other refined labels changed", state["text"])[1])
    assert changed >= 20
    for position in range(25):
        session.undo("page", position, {})
    teaching.wait()
    state = session.next("page")["state"]
    assert state["curve"] == [] and state["text"] == "No answers yet."


def test_the_share_of_held_out_answers_counts_no_picture_by_its_own_answer():
    """Images that are like no other, answered by chance: all are right by their own answer, few by the others'."""
    images = Images(torch.arange(60), torch.eye(60).half(), torch.full((60, 4), 0.25).half())
    known = list(enumerate(np.random.default_rng(0).integers(0, 4, 60).tolist()))
    assert images.refined(dict(known)).argmax(1).tolist() == [label for _, label in known]
    assert Teaching(images).right(known).mean() < 0.5


def test_doubtful_pictures_come_by_rising_confidence_and_measure_nothing(tmp_path):
    config = config_at(tmp_path, order=DOUBTFUL)
    review = review_at(config)
    sure = [picture.confidence for picture in review.pictures]
    assert sure == sorted(sure) and len(sure) == 150
    session = Session(review, str(tmp_path), "ann")
    model = [review.classes[picture.classes[1]] for picture in review.pictures]
    other = next(name for name in review.classes if name != model[0])
    session.answer("page", 0, {"kind": "label", "label": other})
    session.answer("page", 1, {"kind": "label", "label": model[1]})
    session.answer("page", 2, {"kind": "none"})
    state = session.answer("page", 3, {"kind": "unsure"})["state"]
    assert state["text"] == "4 answers, 2 unlike the model's; doubtful pictures measure nothing."
    assert "must select" not in what_next(config, session)
    rows = (tmp_path / "relabelled.csv").read_text().splitlines()
    assert rows[1].startswith(f"{review.pictures[0].image},{model[0]},{other},ann,2")
    assert rows[2].split(",")[2] == "" and len(rows) == 3
    assert review.measured(read_answers(str(tmp_path))) is None, "also not when the order is another one later"
    with pytest.raises(ValueError, match=r"its review\.json is in the order doubtful; delete that file"):
        review_at(replace(config, order="random"))


def test_copies_of_a_file_are_asked_about_once_and_what_a_model_says_is_always_offered(monkeypatch, tmp_path):
    monkeypatch.setattr("must.deploy.review.prepare.LIKELY", 2)
    monkeypatch.setattr("must.deploy.review.session.FEW", 5)
    monkeypatch.setattr("must.deploy.review.prepare.fingerprint", lambda data: f"{data[-20] % 7:064x}")
    review, images = prepare(config_at(tmp_path))
    assert len(review.pictures) <= 7 < len(images.numbers) == review.images == 150
    session = Session(review, str(tmp_path), "")
    for position, picture in enumerate(review.pictures):
        offered = session.describe(position)["names"]
        assert {review.classes[number] for number in picture.likely} == set(offered)
        assert offered == sorted(offered, key=review.classes.index) and set(picture.classes[:2]) <= set(picture.likely)


def test_a_folder_of_another_model_or_with_damaged_files_is_refused_in_one_line(folder, tmp_path):
    config = config_at(folder)
    with pytest.raises(ValueError, match=r"its review\.json is about another model"):
        review_at(replace(config, model=digits().zero_shot))
    file = folder / "review.safetensors"
    for damage in (lambda: file.write_bytes(file.read_bytes()[:-100]), file.unlink):
        damage()
        with pytest.raises(ValueError, match=r"review\.safetensors: is missing or damaged; delete review\.json"):
            Images.load(str(folder))
    (folder / "review.json").write_text((folder / "review.json").read_text()[:-100])
    with pytest.raises(ValueError, match="is damaged or of another version"):
        review_at(config)


def test_a_page_that_carries_its_pictures_runs_nothing_of_theirs_and_has_a_bound(review, folder, monkeypatch):
    review.classes[0] = hostile = '</script><img src=x onerror="alert(1)">'
    session = Session(review, str(folder), "ann")
    data, count = self_contained(session, Pictures(ShardReader(review.shards, review.split)), 12)
    text = data.decode()
    assert count == 12 and hostile not in text and text.count("</script>") == 2 and "data:image/" in text
    assert "default-src 'none'" in text and not re.search(r"(src|href)=\"(?!data:)", text)
    carried = json.loads(re.search(r'id="carried">(.*?)</script>', text, re.S)[1])
    assert carried["classes"][0] == hostile and len(carried["pictures"]) == 12 and carried["picked"] is False
    assert not (folder / "answers.jsonl").exists()
    taken = sum(map(len, carried["images"].values()))
    monkeypatch.setattr("must.deploy.review.page.LARGEST", taken - 1)
    less, count = self_contained(session, Pictures(ShardReader(review.shards, review.split)), 12)
    assert count == 11 and len(less) < len(data)
