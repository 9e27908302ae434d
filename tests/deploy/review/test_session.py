"""Which pictures a review asks about, for several people, and what counts of their answers."""

import json
from collections import Counter
from dataclasses import replace

import pytest

from must.deploy.review.prepare import CPU, AnswerEffect, compute_review
from must.deploy.review.session import RESERVED_S, Session
from must.method.answers.answers_file import AGAIN, COVERAGE, RANDOM, read_answers
from must.method.memory.measure import find_answers
from must.method.memory.refine import refine_pool
from tests.deploy.review.conftest import config_at, labels_of


def test_two_pages_show_different_pictures_and_one_that_is_left_holds_nothing_up(review, folder):
    now = [0.0]
    session = Session(review, str(folder), "", clock=lambda: now[0])
    ann, bob = session.next("ann")["picture"], session.next("bob")["picture"]
    first, second, third, *_ = (picture.number for picture in review.pictures)
    assert (ann["number"], bob["number"]) == (first, second) and session.next("ann")["picture"] == ann
    reply = session.answer("bob", {"number": bob["number"], "kind": "none"})
    assert reply["picture"]["number"] == third and reply["state"]["counting"], "a gap is no end"
    session.leave("ann")
    assert session.next("eve")["picture"]["number"] == first
    now[0] = RESERVED_S + 1
    assert session.next("bob")["picture"]["number"] == first
    session.answer("bob", {"number": ann["number"], "kind": "unsure"})
    assert [one.unsure for one in session.answers.values()] == [False, True]


def test_only_pictures_drawn_at_random_measure_whatever_else_is_answered(review, folder):
    labels = labels_of(review)
    session = Session(review, str(folder), "ann")
    grid = session.grid("page", {"sort": "sure"})
    most = max(set(called := [one.classes[1] for one in review.pictures]), key=called.count)
    assert grid["label"] == review.classes[most] and grid["left"] == called.count(most) == max(grid["counts"])
    assert all(one["predicted"][1] == grid["label"] for one in grid["pictures"]) and len(grid["pictures"]) <= 60
    wanted = [one["number"] for one in grid["pictures"]][:4]
    reply = session.answer("page", {"kind": "label", "label": grid["label"], "also": wanted, "grid": True})
    assert reply["picture"] is None and reply["state"]["text"].startswith("4 answers for teaching only")
    assert not reply["state"]["gain"]
    assert session.grid("page", {"label": grid["label"]})["left"] == grid["left"] - 4
    asked, shown = {RANDOM: [], COVERAGE: []}, session.next("page")["picture"]
    while len(asked[COVERAGE]) < 12:
        picture = session.picture(shown["number"])
        asked[shown["sampled"]].append(picture.number)
        also = [one["number"] for one in shown["similar"] if one["open"]][:1]
        request = {"number": picture.number, "kind": "label", "label": labels[picture.sha256], "also": also}
        shown = session.answer("page", request)["picture"]
    drawn = len(asked[RANDOM])
    assert drawn == 26, "one in three after the first twenty"
    assert asked[RANDOM] == [picture.number for picture in review.pictures[:drawn]], "also those that the grid had"
    assert asked[COVERAGE] == [number for number in review.coverage if number in asked[COVERAGE]]
    lines = [json.loads(line) for line in (folder / "answers.jsonl").read_text().splitlines()]
    counts = Counter(line["sampled"] for line in lines)
    assert counts[RANDOM] == drawn and counts[COVERAGE] == 12 and counts["grid"] == 4 and counts["similar"] > 20
    first = review.pictures[0]
    session.show("page", {"number": first.number})
    session.answer("page", {"number": first.number, "kind": "none"})
    assert session.answers[first.sha256].sampled == RANDOM, "a changed answer about a drawn picture measures"
    again = {"kind": "label", "label": "one", "also": [first.number], "grid": True}
    session.answer("page", again)
    assert session.answers[first.sha256].label is None, "a grid changes no answer that measures"
    differ = session.grid("page", {"sort": "differ"})["pictures"]
    assert differ and all(len(set(one["predicted"])) > 1 for one in differ)


def test_pictures_of_none_of_the_classes_are_asked_again_after_a_class_was_added(review, folder):
    session = Session(review, str(folder), "ann")
    numbers, sha256s = zip(*((picture.number, picture.sha256) for picture in review.pictures), strict=True)
    session.act("next", "page", {})
    for place in range(3):
        kind = {"kind": "label", "label": "one"} if place == 1 else {"kind": "none"}
        session.act("answer", "page", {"number": numbers[place]} | kind)
    session.act("answer", "page", {"also": [numbers[-1]], "kind": "none", "grid": True})
    more = replace(review, classes=[*review.classes, "ten"])
    later = Session(more, str(folder), "ann")
    assert len(later.answers) == 1 and len(later.measuring) == 3
    for label in review.classes:
        assert not {numbers[0], numbers[2]} & {
            tile["number"] for tile in later.act("grid", "p", {"label": label})["pictures"]
        }
    later.act("answer", "page", {"also": [numbers[0]], "kind": "label", "label": "one", "grid": True})
    assert len(later.measuring) == 3, "stays in the sample"
    shown, asked = later.act("next", "page", {})["picture"], []
    for label in ("ten", "ten", "one"):
        asked.append((shown["number"], shown["sampled"]))
        shown = later.act("answer", "page", {"number": shown["number"], "kind": "label", "label": label})["picture"]
    assert asked == [(numbers[0], RANDOM), (numbers[2], RANDOM), (numbers[-1], AGAIN)] and shown["number"] == numbers[3]
    assert read_answers(str(folder))[sha256s[2]].sampled == RANDOM and len(later.answers) == 4
    again = Session(more, str(folder), "ann")
    for _ in range(3):
        again.act("undo", "page", {})
    assert len(again.answers) == 1 and again.act("next", "page", {})["picture"]["number"] in [n for n, _ in asked]


def test_a_random_answer_that_is_changed_in_a_later_session_stays_in_the_sample(review, folder):
    first, second = review.pictures[:2]
    session = Session(review, str(folder), "ann")
    for picture in (first, second):
        session.act("next", "page", {})
        session.act("answer", "page", {"number": picture.number, "kind": "label", "label": "one"})
    later = Session(review, str(folder), "ann")
    shown = later.act("show", "page", {"number": first.number})["picture"]
    assert (shown["answer"], shown["sampled"]) == ("one", RANDOM)
    later.act("answer", "page", {"number": first.number, "kind": "label", "label": "two"})
    later.act("answer", "page", {"number": second.number, "kind": "none", "grid": True})
    assert {answer.sampled for answer in read_answers(str(folder)).values()} == {RANDOM}


def test_undo_restores_what_was_there_and_takes_nothing_from_others(review, folder):
    one, two, three = (picture.number for picture in review.pictures[:3])
    added = [{"sha256": review.pictures[9 + n].sha256, "label": review.classes[0]} for n in range(5)]
    (folder / "answers.jsonl").write_text("".join(json.dumps(line) + "\n" for line in added))

    def label(session):
        return {session.by_sha256[sha256].number: answer.label for sha256, answer in session.answers.items()}

    def answer(session, browser, number, label, **more):
        request = {"number": number, "kind": "label", "label": label, "who": browser, "browser": browser}
        session.answer("tab", request | more)

    session = Session(review, str(folder), "ann")
    with pytest.raises(ValueError, match="no answer to take back"):
        session.undo("tab", {})
    answer(session, "ann", one, "one", also=[two, three])
    answer(session, "bob", two, "two")
    answer(session, "ann", three, "three")
    session = Session(review, str(folder), "")  # the program was started again
    assert [one["answer"] for one in session.next("tab", {"who": "ann"})["state"]["recent"]] == ["three", "one"]
    answer(session, "eve", three, "seven")
    before = label(session)
    assert session.undo("new tab", {"browser": "eve", "who": "eve"})["undone"] == 1
    assert label(session) == before | {three: "three"}
    session.undo("tab", {"who": "ann"})
    assert label(session) == before | {three: "one"}
    assert session.undo("tab", {"who": "ann"})["undone"] == 3
    others = {number: name for number, name in before.items() if number not in (one, three)}
    assert label(session) == others and others[two] == "two" and len(others) == 6
    with pytest.raises(ValueError, match="no answer to take back"):
        session.undo("tab", {"who": "ann"})
    assert label(Session(review, str(folder), "")) == others


def test_a_set_is_finished_when_a_person_has_named_what_is_left(review, folder, images):
    """While labels are good all questions are random; then what is left is asked, the least sure label first."""
    effect, known_labels = AnswerEffect(config_at(folder), images), labels_of(review)
    session = Session(review, str(folder), "ann", effect)
    asked, shown = [], session.next("page")["picture"]
    while shown:
        asked.append(shown["sampled"])
        picture = session.picture(shown["number"])
        request = {"number": picture.number, "kind": "label", "label": known_labels[picture.sha256]}
        session.act("answer", "page", request)
        effect.wait()
        shown = session.act("next", "page", {})["picture"]
    state, answered = session.state("page"), len(asked)
    assert state["finished"] and state["set"]["left"] == 0 and "none is left. At most 5 in 100" in state["text"]
    assert state["set"]["answered"] == answered and asked.count("left") >= 1
    assert answered < 100 and {*asked[asked.index("left") :]} == {"left"}, "it counts down, and to no other number"
    assert COVERAGE not in asked, "the labels are right on more than 80 of 100"
    lines = [json.loads(line) for line in (folder / "answers.jsonl").read_text().splitlines()]
    assert [line["sampled"] for line in lines if "sampled" in line] == asked
    found = find_answers(effect.config, read_answers(str(folder)), review.classes, images.features)
    refined = refine_pool(images.pool, found, CPU, 1000, 0.05)
    labels = [review.classes[label] for label in refined.labels.labels.tolist()]
    true = {picture.number: known_labels[picture.sha256] for picture in review.pictures}
    wrong = sum(label != true[number] for label, number in zip(labels, images.pool.numbers.tolist(), strict=True))
    assert wrong <= 0.05 * 150
    more = session.next("page", {"more": True})["picture"]
    assert more and more["sampled"] in (RANDOM, COVERAGE), "who likes goes on"
    session = Session(review, str(folder), "ann", effect)
    assert session.undo("page", {})["picture"]["sampled"] == asked[-1] == "left", "after a restart, too"
    session.answer("page", request)
    effect.wait()
    assert session.state("page")["finished"]
    effect.newest += 1  # as while the effect of another answer is computed
    assert not session.state("page")["finished"] and session.next("page")["picture"], "others until it is known"
    effect.newest -= 1
    kept = (folder / "accepted-0.05.npz").read_bytes()
    config = config_at(folder, limit=100)
    few = AnswerEffect(config, compute_review(config)[1])
    few.update()
    few.wait()
    assert 0 < few.progress.elsewhere < answered and few.progress.unread + few.progress.elsewhere == 50
    assert (folder / "accepted-0.05.npz").read_bytes() == kept, "by a look at fewer pictures"
    effect.progress = replace(effect.progress, unread=850)
    state = session.state("page")
    assert not state["finished"] and state["set"]["left"] == state["set"]["unread"] == 850
    assert "850 other pictures are left that were not read here (--limit)" in state["text"]
    assert session.next("page")["picture"], "of those that it has"
