"""What answers of `must review` do in `must select` and `must refine`, on the bundled digits."""

import json
import shutil

import numpy as np
import pytest
from must.method.select.select import best_alpha

from must.base.records import record_of
from must.config import ReviewConfig
from must.data.loading.reader import ShardReader
from must.deploy.review.prepare import prepare
from must.method.answers.answers_file import append
from must.method.answers.estimate import AccuracyEstimate
from must.method.model.bundle import load_description
from tests.method.select.test_refine import rows_of, run
from tests.method.select.test_select import selected


@pytest.fixture(scope="module")
def asked(digits, tmp_path_factory):
    """(folder with review.json, the review, sha256 -> the true class)."""
    folder = tmp_path_factory.mktemp("review")
    places = {"model": digits.adapted, "baseline": digits.classifier, "shards": digits.shards}
    review, _ = prepare(ReviewConfig(**places, output=str(folder), workers=0, device="cpu"))
    review.save(str(folder))
    reader = ShardReader(review.shards, review.split)
    return folder, review, {one.sha256: reader.description(one.number)["label"] for one in review.pictures}


def answered(asked, folder, count, say=lambda label: {"label": label}):
    """A folder with the review and its first `count` answers."""
    source, review, truth = asked
    folder.mkdir()
    shutil.copy(source / "review.json", folder)
    for picture in review.pictures[:count]:
        append(
            folder / "answers.jsonl",
            {"image": picture.image, "sha256": picture.sha256, "sampled": "random", **say(truth[picture.sha256])},
        )
    return str(folder)


def refined(digits, output, **changes):
    return run(digits, output, **{"model": digits.adapted, **changes}), rows_of(output)


def test_answers_choose_alpha_and_the_bundle_says_what_they_measured(digits, asked, tmp_path):
    selected(digits, digits.adapted, tmp_path / "kept", answers=answered(asked, tmp_path / "review", 60))
    record = load_description(str(tmp_path / "kept")).provenance.selection.to_dict()
    assert record["by"] == "60 answers" and record["alpha"] >= 0.5, "it was tuned with labels on these very images"
    measured = record_of(AccuracyEstimate, record["measured"])
    assert measured.answers == 60 and measured.gain.low > 0 and measured.model.value > 0.9


def test_answers_against_the_model_choose_zero_shot(digits, asked, tmp_path):
    """Somebody who agrees with zero-shot on every picture."""
    _, review, _ = asked
    says = {one.sha256: review.classes[one.classes[0]] for one in review.pictures}
    folder = answered((asked[0], review, says), tmp_path / "review", 60)
    choice = selected(digits, digits.adapted, tmp_path / "kept", answers=folder)
    assert choice["alpha"] <= 0.1 and record_of(AccuracyEstimate, choice["measured"]).gain.high < 0.1


def test_half_is_kept_unless_another_share_is_better_beyond_its_error():
    rng = np.random.default_rng(0)
    same = np.repeat(rng.random((1, 50)) < 0.7, 11, axis=0)
    assert best_alpha(same, 0.5) == 0.5
    one_more = same.copy()
    one_more[10, np.flatnonzero(~same[10])[:1]] = True
    assert best_alpha(one_more, 0.5) == 0.5
    many_more = same.copy()
    many_more[10, np.flatnonzero(~same[10])[:10]] = True
    assert best_alpha(many_more, 0.5) == 1.0


def test_answered_images_keep_their_answer_and_similar_ones_learn_from_it(digits, asked, tmp_path):
    _, review, truth = asked
    label_of = {one.image: truth[one.sha256] for one in review.pictures}
    other = {name: review.classes[(number + 1) % 10] for number, name in enumerate(review.classes)}
    folder = answered(asked, tmp_path / "review", 50, lambda label: {"label": other[label]})
    _, before = refined(digits, tmp_path / "before")
    summary, after = refined(digits, tmp_path / "after", answers=folder)
    assert summary["answers"] == 50 and [row["image"] for row in before] == [row["image"] for row in after]
    names = {one.image for one in review.pictures[:50]}
    mine = [row for row in after if row["image"] in names]
    assert all(row["class"] == other[label_of[row["image"]]] and row["confidence"] == "1.000000" for row in mine)
    others = [(old, new) for old, new in zip(before, after, strict=True) if old["image"] not in names]
    assert all(old["model"] == new["model"] and old["zero_shot"] == new["zero_shot"] for old, new in others)
    taught = [new["class"] for old, new in others if new["class"] != old["class"]]
    wanted = [other[label_of[new["image"]]] for old, new in others if new["class"] != old["class"]]
    assert len(taught) > 20 and np.mean([one == two for one, two in zip(taught, wanted, strict=True)]) > 0.7


def test_true_answers_improve_zero_shots_labels_of_the_other_images(digits, asked, tmp_path):
    _, review, truth = asked
    label_of = {one.image: truth[one.sha256] for one in review.pictures}
    folder, names = answered(asked, tmp_path / "review", 50), {one.image for one in review.pictures[:50]}
    right = []
    for place, answers in (("before", ""), ("after", folder)):
        _, rows = refined(digits, tmp_path / place, model="", answers=answers)
        right.append(np.mean([row["class"] == label_of[row["image"]] for row in rows if row["image"] not in names]))
    assert right[1] > right[0] + 0.02


def test_an_image_of_none_of_the_classes_has_no_label(digits, asked, tmp_path):
    folder = answered(asked, tmp_path / "review", 3, lambda label: {"label": None})
    _, rows = refined(digits, tmp_path / "out", answers=folder)
    names = {one.image for one in asked[1].pictures[:3]}
    assert {row["image"] for row in rows if not row["class"]} == names
    assert all(row["confidence"] == "0.000000" and row["model"] for row in rows if row["image"] in names)


@pytest.mark.parametrize("stage", ["select", "refine"])
def test_wrong_answers_are_one_line_and_leave_nothing(digits, asked, tmp_path, refusal, stage):
    places = {"model": digits.adapted, "shards": digits.shards, "output": str(tmp_path / "out")}
    places |= {"baseline" if stage == "select" else "classifier": digits.classifier}

    assert "no review.json there" in refusal(stage, places | {"answers": str(tmp_path)})
    flags = places | {"answers": answered(asked, tmp_path / "review", 2, lambda label: {"label": "cow"})}
    assert "answers.jsonl, line 1: 'cow' is none of the model's classes" in refusal(stage, flags)
    content = json.loads((tmp_path / "review/review.json").read_text())
    (tmp_path / "review/answers.jsonl").unlink()
    for change, why in (
        ({"index_sha256": "0"}, "another revision of the shards"),
        ({"format": 1}, "of another version"),
    ):
        (tmp_path / "review/review.json").write_text(json.dumps(content | change))
        assert why in refusal(stage, flags)
    assert not (tmp_path / "out").exists()


def test_answers_about_pictures_by_coverage_choose_nothing(digits, asked, tmp_path):
    folder = answered(asked, tmp_path / "review", 20, lambda label: {"label": label, "sampled": "coverage"})
    with pytest.raises(ValueError, match="no answers yet about pictures that were drawn at random"):
        selected(digits, digits.adapted, tmp_path / "out", answers=folder)
    assert refined(digits, tmp_path / "labels", answers=folder)[0]["answers"] == 20
