"""`must review` as people use it: a page on this machine, answers on the disk, and what `must select` makes of them."""

import http.client
import json
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from must.method.answers.decided import decided
from must.method.answers.doubts import Doubts, save_relabelled
from must.method.answers.sampling import SamplingPlan

from must.api.stages import call
from must.config import GateConfig, ReviewConfig
from must.data.loading.reader import ShardReader
from must.deploy.review.page import self_contained
from must.deploy.review.pictures import Pictures
from must.deploy.review.prepare import prepare, prepare_doubts
from must.deploy.review.review import placed
from must.deploy.review.session import PATIENCE, Session
from must.evaluation.gate import label_free_gate, reviewed_gate
from must.method.answers.book import read_answers
from must.method.model.bundle import load_description
from tests.evaluate.digits import digits

SILENCE = 120  # seconds in which a program that works has long answered


def config_at(folder, **more):
    made = digits()
    places = {"model": made.adapted, "baseline": made.classifier, "shards": made.shards, "output": str(folder)}
    return ReviewConfig(**places, workers=0, device="cpu", **more)


@pytest.fixture(scope="module")
def planned(tmp_path_factory):
    """A folder with review.json, made once; tests copy it."""
    folder = tmp_path_factory.mktemp("review")
    prepare(config_at(folder)).save(str(folder))
    return folder


@pytest.fixture
def folder(planned, tmp_path):
    (tmp_path / "review.json").write_bytes((planned / "review.json").read_bytes())
    return tmp_path


@pytest.fixture
def plan(folder):
    return SamplingPlan.load(str(folder))


def labels_of(plan):
    reader = ShardReader(plan.shards, plan.split)
    return {picture.sha256: reader.description(picture.number)["label"] for picture in plan.pictures}


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


def test_a_session_that_is_killed_goes_on_and_ends_with_what_to_do_next(open_page, folder, plan):
    labels = labels_of(plan)
    page = open_page(folder)
    shown = page.post("next")["picture"]
    for _ in range(5):
        position = shown["position"]
        said = labels[plan.pictures[position].sha256]
        assert set(shown["names"]) == set(plan.names(position)) and len(shown["alike"]) == 6
        shown = page.post("answer", position=position, kind="label", label=said)["picture"]
    page.end(signal.SIGKILL)

    page = open_page(folder)
    begun = page.post("next")
    assert begun["state"]["answers"] == 5 and begun["picture"] == shown
    again = page.post("undo", position=4)["picture"]
    assert again["position"] == 4
    page.post("answer", position=4, kind="none")
    page.post("answer", position=5, kind="unsure", who="bob")
    code, log = page.end()
    assert code == 0 and "6 answers" in log and "--answers" in log
    found = read_answers(str(folder), plan.classes)
    assert [found[picture.sha256].label for picture in plan.pictures[3:6]] == [
        labels[plan.pictures[3].sha256],
        None,
        None,
    ]
    lines = [json.loads(line) for line in (folder / "answers.jsonl").read_text().splitlines()]
    assert [line["who"] for line in lines] == ["ann"] * 7 + ["bob"] and all(line["when"] for line in lines)
    assert lines[0]["shown"] and lines[-1]["unsure"] and "label" not in lines[-1]


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
    assert not (folder / "answers.jsonl").exists()
    second = subprocess.run(page.process.args, capture_output=True, text=True, timeout=SILENCE, check=False)
    assert second.returncode == 73 and "another `must review`" in second.stderr
    assert page.end(signal.SIGINT)[0] == 0


def test_two_people_get_different_pictures_and_one_who_leaves_holds_nothing_up(plan, folder):
    now = [0.0]
    session = Session(plan, str(folder), "", clock=lambda: now[0])
    ann, bob = session.next("ann")["picture"], session.next("bob")["picture"]
    assert (ann["position"], bob["position"]) == (0, 1) and session.next("ann")["picture"] == ann
    assert session.answer("bob", 1, {"kind": "none"})["picture"]["position"] == 2
    assert session.verdict.answers == 0  # with a gap before them, answers wait
    now[0] = PATIENCE + 1
    assert session.next("bob")["picture"]["position"] == 0
    session.answer("bob", 0, {"kind": "unsure"})
    assert session.verdict.answers == 2


def test_answers_decide_what_select_keeps_and_the_gate_accepts_it(plan, folder, tmp_path):
    labels = labels_of(plan)
    session = Session(plan, str(folder), "ann")
    for position, picture in enumerate(plan.pictures):
        session.answer("page", position, {"kind": "label", "label": labels[picture.sha256]})
        if session.verdict.outcome == "better":
            break
    assert session.verdict.outcome == "better" and len(session.answers) < len(plan.pictures)
    made = digits()
    places = {"model": made.adapted, "baseline": made.classifier, "shards": made.shards, "answers": str(folder)}
    call("select", **places, output=str(tmp_path / "kept"), workers=0, device="cpu")
    chosen = load_description(str(tmp_path / "kept")).provenance["selection"]
    assert chosen["alpha"] == plan.alphas[session.verdict.candidate - 1] and chosen["review"]["who"] == ["ann"]
    assert chosen["review"]["low"] >= 0 and "answers about pictures" in chosen["reason"]

    call("evaluate", model=str(tmp_path / "kept"), baseline=made.classifier, shards=made.shards, workers=0,
         output=str(tmp_path / "report"), device="cpu")  # fmt: skip
    metrics = json.loads((tmp_path / "report/metrics.json").read_text())
    for gate in (reviewed_gate, label_free_gate):
        decision = gate(metrics, GateConfig(metrics=""))
        assert decision.passed and decision.outcome == "gain" and "answers about pictures" in decision.reasons[0]
    assert "as people's answers decided" in (tmp_path / "report/report.html").read_text().replace("&#39;", "'")
    champion = metrics | {"baseline_name": "r0001"}
    by_champion = [gate(champion, GateConfig(metrics="")) for gate in (reviewed_gate, label_free_gate)]
    assert by_champion[0].gate == "reviewed" and by_champion[0].reasons == by_champion[1].reasons
    assert not any("answers about pictures" in reason for reason in by_champion[0].reasons), (
        "none is about the champion"
    )
    del metrics["model"]["provenance"]["selection"]["review"]
    assert not reviewed_gate(metrics, GateConfig(metrics="")).passed


def test_wrong_folders_are_told_before_torch_is_imported(folder, tmp_path, capsys):
    made = digits()
    weights = f"{made.zero_shot}/model.safetensors"
    with pytest.raises(ValueError, match="review of another model"):
        decided(str(folder), weights)
    with pytest.raises(ValueError, match="no answers"):
        decided(str(folder), f"{made.adapted}/model.safetensors")
    (folder / "review.json").write_text((folder / "review.json").read_text()[:-100])
    with pytest.raises(ValueError, match="is damaged"):
        decided(str(folder), weights)
    with pytest.raises(ValueError, match="names every image as zero-shot does"):
        config = config_at(tmp_path, images=100)
        config.model = made.zero_shot
        prepare(config)
    assert "looking at 100 images" in capsys.readouterr().out


def test_doubtful_pictures_of_each_class_in_turn_and_a_table_of_those_called_otherwise(tmp_path):
    config = config_at(tmp_path, mode="doubtful")
    plan = prepare_doubts(config)
    plan.save(str(tmp_path))
    plan = Doubts.load(str(tmp_path))
    first = [picture.classes[0] for picture in plan.pictures]
    assert len(set(first[:10])) == 10 and len(plan.pictures) == 150
    assert plan.pictures[0].chance == min(p.chance for p in plan.pictures if p.classes[0] == first[0])
    session = Session(plan, str(tmp_path), "ann")
    other = next(name for name in plan.classes if name != plan.classes[first[0]])
    session.answer("page", 0, {"kind": "label", "label": other})
    session.answer("page", 1, {"kind": "label", "label": plan.classes[first[1]]})
    session.answer("page", 2, {"kind": "none"})
    state = session.answer("page", 3, {"kind": "unsure"})["state"]
    assert state["answers"] == 4 and "2 of them name another class" in state["text"]
    assert save_relabelled(plan, session.answers, str(tmp_path)) == 2
    rows = (tmp_path / "relabelled.csv").read_text().splitlines()
    assert rows[1].startswith(f"{plan.pictures[0].image},{plan.classes[first[0]]},{other},ann,2")
    assert rows[2].split(",")[2] == "" and len(rows) == 3


def test_the_whole_adaptation_is_asked_about_where_training_kept_a_part_of_it(tmp_path):
    made = digits()
    kept = tmp_path / "model"
    shutil.copytree(made.zero_shot, kept)
    shutil.copytree(made.adapted, kept / "adapted")
    config = config_at(tmp_path / "review")
    config.model = str(kept)
    assert placed(config).model == str(kept / "adapted")
    config.mode = "doubtful"
    assert placed(config).model == str(kept)
    with pytest.raises(ValueError, match="no folder that `must adapt` made"):
        placed(ReviewConfig(work=str(tmp_path)))
    (tmp_path / "adapt.json").write_text("{}")
    found = placed(ReviewConfig(work=str(tmp_path)))
    assert found.model == str(kept / "adapted") and found.output == str(tmp_path / "review")


def test_a_page_that_carries_its_pictures_runs_nothing_of_theirs_and_has_a_bound(plan, folder, monkeypatch):
    plan.classes[0] = hostile = '</script><img src=x onerror="alert(1)">'
    session = Session(plan, str(folder), "ann")
    data, count = self_contained(session, Pictures(ShardReader(plan.shards, plan.split)), 12)
    text = data.decode()
    assert count == 12 and hostile not in text and text.count("</script>") == 2 and "data:image/" in text
    assert "default-src 'none'" in text and not re.search(r"(src|href)=\"(?!data:)", text)
    carried = json.loads(re.search(r'id="carried">(.*?)</script>', text, re.S)[1])
    assert carried["classes"][0] == hostile and len(carried["pictures"]) == 12
    assert Path(folder / "answers.jsonl").exists() is False
    taken = sum(map(len, carried["images"].values()))
    monkeypatch.setattr("must.deploy.review.page.LARGEST", taken - 1)
    less, count = self_contained(session, Pictures(ShardReader(plan.shards, plan.split)), 12)
    assert count == 11 and len(less) < len(data)
