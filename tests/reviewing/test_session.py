"""Which pictures a review asks about, for several people, and what counts of their answers."""

import json
from dataclasses import replace

import pytest

from must.answers.answers_file import AGAIN, FOLDER, RANDOM, read_answers
from must.memory.measure import find_answers
from must.memory.refine import refine_pool
from must.reviewing.prepare import CPU, AnswerEffect, compute_review
from must.reviewing.session import RESERVED_S, Session
from tests.reviewing.conftest import config_at, labels_of


def say(session, number, label, page="page", **more):
    return session.act("answer", page, {"number": number, "kind": "label", "label": label} | more)


def test_two_pages_show_different_pictures_and_one_that_is_left_holds_nothing_up(review, folder):
    now = [0.0]
    session = Session(review, str(folder), "", clock=lambda: now[0])
    ann, bob = (session.act("next", name, {})["picture"] for name in ("ann", "bob"))
    first, second, third, *_ = (picture.number for picture in review.pictures)
    assert (ann["number"], bob["number"]) == (first, second) and session.act("next", "ann", {})["picture"] == ann
    assert ann["image"] == review.pictures[0].image
    reply = session.act("answer", "bob", {"number": bob["number"], "kind": "none"})
    assert reply["picture"]["number"] == third and reply["state"]["counting"], "a gap is no end"
    session.act("leave", "ann", {})
    assert session.act("next", "eve", {})["picture"]["number"] == first
    now[0] = RESERVED_S + 1
    assert session.act("next", "bob", {})["picture"]["number"] == first
    session.act("answer", "bob", {"number": ann["number"], "kind": "unsure"})
    assert [one.unsure for one in session.answers.values()] == [False, True]
    screen = session.act("next", "ann", {"mode": "screens"})["screen"]
    other = session.act("next", "eve", {"mode": "screens", "label": screen["label"]})["screen"]
    assert not {one["number"] for one in screen["pictures"]} & {one["number"] for one in other["pictures"]}


def test_no_picture_is_asked_twice_and_one_answered_before_its_turn_counts_as_drawn(review, folder):
    labels, pictures = labels_of(review), review.pictures
    session = Session(review, str(folder), "ann")
    reply = session.act("next", "page", {"mode": "screens"})
    screen, most = reply["screen"], max(set(named := [one.label for one in pictures]), key=named.count)
    assert screen["label"] == review.classes[most] and screen["left"] == named.count(most)
    numbers = [one["number"] for one in screen["pictures"]]
    assert {session.picture(number).label for number in numbers} == {most}
    groups = {}
    for number in numbers:
        groups.setdefault(labels[session.picture(number).sha256], []).append(number)
    request = {"screen": [["label", *group] for group in groups.items()], "right": screen["label"]}
    session.act("answer", "page", request)
    assert {one.sampled for one in session.answers.values()} == {"screen"} and len(session.answers) == len(numbers)
    corrected = [one for one in session.answers.values() if one.corrects]
    assert {one.model for one in session.answers.values()} == {screen["label"]}
    assert len(corrected) == len(numbers) - len(groups.get(screen["label"], ()))
    asked, shown = [], session.act("next", "page", {})["picture"]
    while shown:
        asked.append(shown["number"])
        shown = say(session, shown["number"], labels[session.picture(shown["number"]).sha256])["picture"]
    assert asked == [picture.number for picture in pictures if picture.number not in numbers]
    assert all(one.measures for one in session.answers.values())
    again = read_answers(str(folder))
    assert all(one.measures for one in again.values()) and sum(one.drawn for one in again.values()) == len(numbers)
    assert session.act("next", "page", {})["state"]["answers"] == len(pictures), "and it ends"


def test_pictures_in_a_wrong_folder_come_first_and_count_as_drawn_at_their_turn(review, folder):
    pictures, session = review.pictures, Session(review, str(folder), "ann")
    doubted = [pictures[40], pictures[2], pictures[7]]
    session.misplaced = {picture.sha256: ("six", "five") for picture in doubted}
    first = session.act("next", "ann", {})["picture"]
    assert (first["number"], first["sampled"], first["folder"]) == (doubted[0].number, FOLDER, ("six", "five"))
    assert session.act("next", "bob", {})["picture"]["number"] == doubted[1].number, "another one for another page"
    assert session.act("next", "eve", {"mode": "screens"})["screen"], "whoever asks for screens gets them"
    random = session.act("next", "joe", {"mode": "one"})["picture"]
    assert (random["number"], random["sampled"], random["folder"]) == (pictures[0].number, RANDOM, None)
    session.act("leave", "joe", {})
    assert say(session, doubted[0].number, "five", "ann")["picture"]["number"] == doubted[2].number
    again = session.act("undo", "ann", {})["picture"]
    assert again["number"] == doubted[0].number and again["folder"]
    say(session, doubted[0].number, "five", "ann")
    say(session, doubted[1].number, "six", "bob")
    after = say(session, doubted[2].number, "six", "ann")["picture"]
    assert (after["number"], after["sampled"]) == (pictures[1].number, RANDOM), "bob's page shows the first one"
    assert {one.sampled for one in session.answers.values()} == {FOLDER}
    assert not any(one.measures for one in session.answers.values())
    for picture in pictures[:2]:
        say(session, picture.number, "six", "ann")
    measured = {sha256 for sha256, one in read_answers(str(folder)).items() if one.measures}
    assert measured == {picture.sha256 for picture in pictures[:3]}, "the third one's turn has come"


def test_a_known_picture_under_a_wrong_label_tells_how_many_are_overlooked(review, folder):
    labels = labels_of(review)
    session = Session(review, str(folder), "ann")
    for picture in review.pictures[:20]:
        say(session, picture.number, labels[picture.sha256])
    single, seen = {*session.answers}, []
    for turn in range(5):
        screen = session.act("next", "page", {"mode": "screens"})["screen"]
        numbers = [one["number"] for one in screen["pictures"]]
        checks = [number for number in numbers if session.picture(number).sha256 in single]
        assert len(checks) == (turn >= 2), "from the third screen on"
        seen += checks
        before = (folder / "answers.jsonl").read_bytes()
        request = {"screen": [["label", screen["label"], numbers]], "right": screen["label"], "mode": "screens"}
        if turn == 3:  # somebody who sees it
            request["screen"] = [["label", screen["label"], sorted({*numbers} - {*checks})], ["none", None, checks]]
        reply = session.act("answer", "page", request)
        if turn in (2, 4):
            assert reply["missed"] == checks[0] and not reply["screen"], "at once"
            assert b'"sampled": "screen"' not in (folder / "answers.jsonl").read_bytes().removeprefix(before)
            assert session.act("answer", "page", request)["screen"], "after a second look"
    assert len({*seen}) == 3, "each another one"
    noticed = [one for answer in read_answers(str(folder)).values() for one in answer.noticed]
    assert sorted(noticed) == [False, False, True] == sorted(n for a in session.answers.values() for n in a.noticed)
    assert all(labels[sha256] == session.answers[sha256].label for sha256 in single), "its answer stays"
    count = len(session.answers)
    assert session.act("undo", "page", {})["undone"] == count - len(read_answers(str(folder))), "a screen at once"


def test_pictures_of_none_of_the_classes_are_asked_again_after_a_class_was_added(review, folder):
    session = Session(review, str(folder), "ann")
    numbers, sha256s = zip(*((picture.number, picture.sha256) for picture in review.pictures), strict=True)
    session.act("next", "page", {})
    for place in range(3):
        kind = {"kind": "label", "label": "one"} if place == 1 else {"kind": "none"}
        session.act("answer", "page", {"number": numbers[place]} | kind)
    session.act("answer", "page", {"screen": [["none", None, [numbers[-1]]]], "right": "one"})
    more = replace(review, classes=[*review.classes, "ten"])
    later = Session(more, str(folder), "ann")
    assert len(later.answers) == 1 and len(later.last) == 4
    for label in review.classes:
        screen = later.act("next", "page", {"mode": "screens", "label": label})["screen"]
        assert not screen, "they are asked alone"
    later.act("answer", "page", {"screen": [["label", "one", [numbers[0]]]], "right": "one"})
    assert later.last[sha256s[0]].measures, "stays in the sample"
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
    later.act("answer", "page", {"number": second.number, "kind": "none"})
    assert {answer.sampled for answer in read_answers(str(folder)).values()} == {RANDOM}


def test_undo_restores_what_was_there_and_takes_nothing_from_others(review, folder):
    one, two, three = (picture.number for picture in review.pictures[:3])
    added = [{"sha256": review.pictures[9 + n].sha256, "label": review.classes[0]} for n in range(5)]
    (folder / "answers.jsonl").write_text("".join(json.dumps(line) + "\n" for line in added))

    def label(session):
        return {session.by_sha256[sha256].number: answer.label for sha256, answer in session.answers.items()}

    def answer(session, browser, number, label):
        request = {"number": number, "kind": "label", "label": label, "who": browser, "browser": browser}
        session.act("answer", "tab", request)

    session = Session(review, str(folder), "ann")
    with pytest.raises(ValueError, match="no answer to take back"):
        session.act("undo", "tab", {})
    screen = {"screen": [["label", "one", [one, two, three]]], "right": "one", "who": "ann", "browser": "ann"}
    session.act("answer", "tab", screen)
    answer(session, "bob", two, "two")
    answer(session, "ann", three, "three")
    session = Session(review, str(folder), "")  # the program was started again
    assert [one["answer"] for one in session.act("next", "tab", {"who": "ann"})["state"]["recent"]] == ["three", "one"]
    answer(session, "eve", three, "seven")
    before = label(session)
    assert session.act("undo", "new tab", {"browser": "eve", "who": "eve"})["undone"] == 1
    assert label(session) == before | {three: "three"}
    session.act("undo", "tab", {"who": "ann"})
    assert label(session) == before | {three: "one"}
    assert session.act("undo", "tab", {"who": "ann"})["undone"] == 3
    others = {number: name for number, name in before.items() if number not in (one, three)}
    assert label(session) == others and others[two] == "two" and len(others) == 6
    with pytest.raises(ValueError, match="no answer to take back"):
        session.act("undo", "tab", {"who": "ann"})
    assert label(Session(review, str(folder), "")) == others


def test_a_set_is_finished_when_a_person_has_named_what_is_left(review, folder, images):
    """At random first, then what is left on screens, or alone, the least sure label first."""
    effect, known_labels = AnswerEffect(config_at(folder), images), labels_of(review)
    session = Session(review, str(folder), "ann", effect)
    asked, reply = [], session.act("next", "page", {"mode": "one"})
    while shown := reply["picture"]:
        asked.append(shown["sampled"])
        request = {"number": shown["number"], "kind": "label", "mode": "one"}
        session.act("answer", "page", request | {"label": known_labels[session.picture(shown["number"]).sha256]})
        effect.wait()
        reply = session.act("next", "page", {"mode": "one"})
    state, answered = reply["state"], len(asked)
    assert state["finished"] and state["set"]["left"] == 0 and "none is left. At most 5 in 100" in state["text"]
    assert state["set"]["named"] == answered < 130 and asked[:20] == ["random"] * 20
    lines = [json.loads(line) for line in (folder / "answers.jsonl").read_text().splitlines()]
    assert [line["sampled"] for line in lines if "sampled" in line and "drawn" not in line] == asked
    given = read_answers(str(folder))
    found = find_answers(effect.config, given, review.classes, images.features)
    refined = refine_pool(images.pool, found, CPU, 1000, 0.05)
    labels = [review.classes[label] for label in refined.labels.labels.tolist()]
    true = {picture.number: known_labels[picture.sha256] for picture in review.pictures}
    wrong = sum(label != true[number] for label, number in zip(labels, images.pool.numbers.tolist(), strict=True))
    assert wrong <= 0.05 * 150
    assert session.act("next", "page", {"more": True})["picture"], "who likes goes on"
    session = Session(review, str(folder), "ann", effect)
    effect.wait()
    assert not session.act("next", "page", {})["picture"] and session.finished, "after a restart, too"
    kept = (folder / "accepted-0.05.npz").read_bytes()
    config = config_at(folder, limit=100)
    few = AnswerEffect(config, compute_review(config)[1])
    few.update()
    few.wait()
    assert 0 < few.progress.elsewhere < answered and few.progress.unread + few.progress.elsewhere == 50
    assert (folder / "accepted-0.05.npz").read_bytes() == kept, "by a look at fewer pictures"
    effect.progress = replace(effect.progress, unread=850)
    state = session.act("next", "page", {})["state"]
    assert not state["finished"] and state["set"]["left"] == 850 and state["of"] == 1_000
    assert "850 other pictures are left that were not read here (--limit)" in state["text"]


def test_answers_that_agree_with_the_model_in_nothing_question_the_names(review, folder, images):
    effect = AnswerEffect(config_at(folder), images)
    session = Session(review, str(folder), "ann", effect)
    for picture in review.pictures[:20]:
        say(session, picture.number, review.classes[(picture.label + 3) % 10])
    effect.wait()
    assert "agree in almost nothing" in session.act("next", "page", {})["state"]["problem"]
