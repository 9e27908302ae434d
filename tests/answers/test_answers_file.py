"""answers.jsonl: nothing that was confirmed is lost, and nothing half-written counts."""

import json

import numpy as np
import pytest

from must.answers.answers_file import Answer, append, append_answers, hash_answers, read_answers, rename_answers
from must.answers.population import record_population
from tests.exporting.conftest import files_up_to

A, B = "a" * 64, "b" * 64


def line(sha256, **rest):
    return {"image": "x.png", "sha256": sha256} | rest


def test_the_last_line_about_a_picture_counts(tmp_path):
    file = tmp_path / "answers.jsonl"
    assert read_answers(str(file)) == {}
    for entry in (line(A, label="cat"), line(B, label=None), line(A, label="dog"), line(B, unsure=True)):
        append(file, entry)
    found = read_answers(str(tmp_path), ["cat", "dog"])
    assert found[A].label == "dog" and found[B].unsure and found[B].label is None


def test_answers_fit_names_in_another_form_of_unicode(tmp_path):
    """As macOS writes them."""
    listed = {"classes": ["cafe\u0301", "bar"]}
    append(tmp_path / "answers.jsonl", listed, line(A, label="cafe\u0301"), line(B, label=None))
    assert read_answers(str(tmp_path), ["caf\xe9", "bar"]).keys() == {A, B}


@pytest.mark.parametrize("label, count", [("one", 1), ("two", 0)])
def test_a_new_name_of_a_class_is_that_of_all_lines(tmp_path, label, count):
    """Else a right label counts as a wrong one, and "none of the classes" is asked again."""
    answers = Answer(A, label, sampled="random", model="one"), Answer(B, None, sampled="random", model="one")
    append_answers(tmp_path / "answers.jsonl", ["one", "two"], answers)
    assert rename_answers(str(tmp_path), {"one": "eins"}) == count
    found = read_answers(str(tmp_path), ["eins", "two"])
    assert [found[one].model for one in (A, B)] == ["eins", "eins"]
    assert found[A].corrects == (label == "two")


def test_an_answer_of_a_class_that_is_gone_is_left_out(tmp_path):
    file = tmp_path / "answers.jsonl"
    append(file, line(A, label="dog"), line(A, label="cow"), line(B, label=None))
    assert read_answers(str(file), ["cat", "dog"]).keys() == {B}, "an older answer does not count again"
    assert read_answers(str(file), ["cow"]).keys() == {A, B}


def test_none_of_the_classes_is_asked_again_once_a_class_was_added(tmp_path):
    file, none, unsure = tmp_path / "answers.jsonl", Answer(B, None), Answer("c" * 64, None, True)
    append_answers(file, ["cat", "dog"], [Answer(A, "cat"), unsure])
    assert b"classes" not in file.read_bytes(), "said only where it is needed"
    append_answers(file, ["cat", "dog"], [none])
    append_answers(file, ["cat", "dog"], [none])
    for classes, there in ((["dog", "cat"], True), (["cat"], True), (["cat", "dog", "cow"], False)):
        assert (B in read_answers(str(file), classes)) == there and unsure.sha256 in read_answers(str(file), classes)
    assert [json.loads(text).get("classes") for text in file.read_text().splitlines()].count(["cat", "dog"]) == 1
    append_answers(file, ["cat", "dog", "cow"], [none])
    assert B in read_answers(str(file), ["cat", "dog", "cow"])
    append(tmp_path / "others.jsonl", line(A, label="cat", classes=["cow"]))
    assert read_answers(str(tmp_path / "others.jsonl"), ["cat"])[A].label == "cat", "a field of another program"
    append(tmp_path / "others.jsonl", line(B, label=None))
    assert B in read_answers(str(tmp_path / "others.jsonl"), ["any"]), "of another program: the list is not known"


def test_a_list_that_is_too_long_for_a_line_is_left_out(tmp_path):
    names = ["n" * 1_000] * 2_000
    append_answers(tmp_path / "answers.jsonl", ["cat"], [Answer(A, None)])
    append_answers(tmp_path / "answers.jsonl", names, [Answer(B, None)])
    assert read_answers(str(tmp_path), names).keys() == {B} and (tmp_path / "answers.jsonl").stat().st_size < 1_000


def test_an_answer_that_is_taken_back_leaves_those_of_others(tmp_path):
    file = tmp_path / "answers.jsonl"
    for who, label in (("ann", "cat"), ("bob", "dog"), ("ann", "cow")):
        append(file, line(A, label=label, who=who, when=f"{who} {label}"))
    for undone, counts in (("ann cow", "dog"), ("ann cat", "dog"), ("never", "dog"), ("bob dog", None)):
        append(file, line(A, undone=undone))
        assert read_answers(str(file)).get(A) == (counts and Answer(A, counts, False, "x.png", "bob", "bob dog"))


@pytest.mark.parametrize("torn", ['{"image": "y.png", "sha2', "{"])
def test_an_incomplete_last_line_does_not_count_and_is_removed(tmp_path, torn):
    file = tmp_path / "answers.jsonl"
    append(file, line(A, label="cat"))
    with file.open("a") as out:
        out.write(torn)
    assert read_answers(str(file)).keys() == {A}
    append(file, line(B, label="dog"))
    assert [json.loads(text)["sha256"] for text in file.read_text().splitlines()] == [A, B]


def test_another_programs_file_may_lack_the_last_line_feed(tmp_path):
    file = tmp_path / "answers.jsonl"
    file.write_text(json.dumps(line(A, label="cat")))
    assert read_answers(str(file))[A].label == "cat"
    append(file, line(B, label="dog"))
    assert read_answers(str(file)).keys() == {A, B}


@pytest.mark.parametrize(
    "text, why",
    [
        (
            f'{{"sha256": "{A}"}}',
            "line 2: is not the JSON object of an answer, with sha256 and label; delete the line, or",
        ),
        ('{"sha256": "../x", "label": "cat"}', "line 2: '../x' is not a sha256"),
        (f'{{"sha256": "{A}", "label": 3}}', "line 2: label must be a class name or null"),
        (f'{{"sha256": "{A}", "undone": true}}', "line 2: undone must be a time"),
        ("[]", "line 2: is not the JSON object of an answer"),
        ("nonsense\n", "line 2: is not the JSON object of an answer"),
    ],
)
def test_a_line_that_is_no_answer_is_named(tmp_path, text, why):
    file = tmp_path / "answers.jsonl"
    append(file, line(B, label="cat"))
    with file.open("a") as out:
        out.write(text + "\n")
    with pytest.raises(ValueError, match="answers.jsonl, " + why.replace("(", r"\(")):
        read_answers(str(file), ["cat"])


@pytest.mark.parametrize("before", ["", '{"image": "y.png", "sha2'])
def test_of_a_write_that_fails_nothing_stays(tmp_path, before):
    """The first new lines would fit."""
    file = tmp_path / "answers.jsonl"
    append(file, line(A, label="cat"))
    saved = file.read_bytes()
    file.write_bytes(saved + before.encode())
    with files_up_to(300), pytest.raises(OSError, match="File too large"):
        append(file, *[Answer(B, "dog").line] * 3)
    assert file.read_bytes() == saved


def test_answers_are_others_if_the_pictures_that_they_were_drawn_from_are_others(tmp_path):
    append(tmp_path / "answers.jsonl", line(A, label="cat"))
    seen = [hash_answers(str(tmp_path))]
    for images in (1, 2):
        record_population(str(tmp_path), np.arange(images, dtype=np.uint64), np.empty(0, np.uint64))
        seen.append(hash_answers(str(tmp_path)))
    assert len({*seen}) == 3 and hash_answers(str(tmp_path / "none")) == hash_answers("") == ""
