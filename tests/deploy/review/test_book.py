"""answers.jsonl: nothing that was confirmed is lost, nothing half-written counts."""

import json

import pytest

from must.method.answers.book import append, read_answers

A, B = "a" * 64, "b" * 64


def line(sha256, **rest):
    return {"image": "x.png", "sha256": sha256} | rest


def test_the_last_line_about_a_picture_counts(tmp_path):
    file = tmp_path / "answers.jsonl"
    for entry in (line(A, label="cat"), line(B, label=None), line(A, label="dog"), line(B, unsure=True)):
        append(file, entry)
    found = read_answers(str(tmp_path), ["cat", "dog"])
    assert found[A].label == "dog" and found[B].unsure and found[B].label is None
    append(file, line(A, undone=True))
    assert read_answers(str(file)).keys() == {B}


@pytest.mark.parametrize("torn", ['{"image": "y.png", "sha2', '{"image": "y', "{"])
def test_what_a_killed_program_left_does_not_count_and_does_not_spoil_the_next(tmp_path, torn):
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
        (f'{{"sha256": "{A}", "label": "cow"}}', "line 2: 'cow' is none of the model's classes"),
        (f'{{"sha256": "{A}"}}', "line 2: KeyError"),
        ('{"sha256": "../x", "label": "cat"}', "line 2: '../x' is not a sha256"),
        (f'{{"sha256": "{A}", "label": 3}}', "line 2: label must be a class name or null"),
        ("[]", "line 2: TypeError"),
        ("nonsense\n", "line 2: "),
    ],
)
def test_a_line_that_is_no_answer_is_named(tmp_path, text, why):
    file = tmp_path / "answers.jsonl"
    append(file, line(B, label="cat"))
    with file.open("a") as out:
        out.write(text + "\n")
    with pytest.raises(ValueError, match="answers.jsonl, " + why.replace("(", r"\(")):
        read_answers(str(file), ["cat"])


def test_what_was_picked_is_known_by_its_line(tmp_path):
    for sha256, rest in ((A, {}), (B, {"picked": True}), ("c" * 64, {"position": 0})):  # the last: of must 0.1
        append(tmp_path / "answers.jsonl", line(sha256, label="cat", **rest))
    assert [one.picked for one in read_answers(str(tmp_path)).values()] == [False, True, True]


def test_no_file_has_no_answers(tmp_path):
    assert read_answers(str(tmp_path / "nothing")) == {}
