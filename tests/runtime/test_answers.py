"""What a run does with people's answers: asks, takes them, goes on with them; each step by itself."""

import json
import shutil
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest

from must.data.loading.reader import ShardReader
from must.method.answers.review import Review
from must.method.model.bundle import load_bundle, load_description, save_bundle
from must.method.model.provenance import Provenance
from must.runtime.answers import add_answers, answers_may_decide, has_new_answers, select_by_answers, write_page
from tests.evaluation.digits import digits

KEY = "key"


@pytest.fixture(scope="module")
def asked(tmp_path_factory):
    """(work_uri, bundle, what `write_page` returned): a run that waits. Tests copy it."""
    made, root = digits(), tmp_path_factory.mktemp("asked")
    shutil.copytree(made.shards, root / "shards")
    shutil.copytree(made.adapted, root / "bundle")
    return root, asked_at(root, root / "out")


def asked_at(work, output):
    bundle, classifier = str(work / "bundle"), digits().classifier
    return write_page(str(work), key=KEY, bundle=bundle, classifier=classifier, output=str(output))


@pytest.fixture
def work(asked, tmp_path):
    shutil.copytree(asked[0], tmp_path / "work")
    return tmp_path / "work"


def lines_of_answers(place):
    """The lines that the page of a review would save for somebody who knows the labels."""
    review = Review.load(str(place))
    reader = ShardReader(review.shards, review.split)
    for one in review.pictures:
        label = reader.description(one.number)["label"]
        yield (
            json.dumps({"image": one.image, "sha256": one.sha256, "label": label, "sampled": "random", "who": "ann"})
            + "\n"
        )


def answers(work, count):
    """A file with the first `count` answers."""
    (file := work / f"{count}.jsonl").write_text("".join(islice(lines_of_answers(work / "reviews" / KEY), count)))
    return str(file)


def recorded(work, **selection):
    bundle = load_bundle(str(work / "bundle"))
    description = replace(bundle.description, provenance=Provenance.of_dict({"selection": selection}))
    save_bundle(str(work / "bundle"), bundle.model, description)
    return str(work / "bundle")


def test_a_run_asks_is_answered_and_goes_on_until_the_answers_show_a_gain(asked, work, tmp_path):
    place, bundle = work / "reviews" / KEY, str(work / "bundle")
    assert asked[1]["pictures"] == 150 and asked[1]["text"] == "No answers yet."
    assert (asked[0] / "out/review.html").read_bytes() == (place / "review.html").read_bytes()
    assert not has_new_answers(str(work), KEY)
    select_by_answers(str(work), KEY, bundle, digits().classifier)  # nobody has answered
    assert load_description(bundle).provenance.selection is None

    first = answers(work, 3)
    assert add_answers(str(work), first).startswith(f"{place}: 3 answers: zero-shot ")
    assert has_new_answers(str(work), KEY)
    select_by_answers(str(work), KEY, bundle, digits().classifier)
    record = load_description(bundle).provenance.selection.to_dict()
    assert record["by"] == "3 answers" and record["measured"]["answers"] == 3 and answers_may_decide(bundle, "reviewed")
    again = asked_at(work, tmp_path / "out")
    assert again["pictures"] == 147 and again["text"].startswith("3 answers: ")
    assert not has_new_answers(str(work), KEY)

    more = answers(work, 80)  # in the order of the model that the three answers chose
    add_answers(str(work), more)
    given = {json.loads(line)["image"] for file in (first, more) for line in Path(file).read_text().splitlines()}
    kept = [json.loads(line)["image"] for line in (place / "answers.jsonl").read_text().splitlines()]
    assert set(kept) == given and len(kept) == len(given) <= 83, "each picture has one answer"
    assert has_new_answers(str(work), KEY)
    shutil.copytree(digits().adapted, bundle, dirs_exist_ok=True)  # what training's checkpoint gives again
    select_by_answers(str(work), KEY, bundle, digits().classifier)
    record = load_description(bundle).provenance.selection.to_dict()
    assert record["by"] == f"{len(given)} answers" and record["measured"]["gain"][1] > 0
    assert not answers_may_decide(bundle, "reviewed"), "they have shown a gain"


CHECK = {"images": 150, "agreement_before": 0.5, "agreement_after": 0.6, "warnings": []}
BAD = CHECK | {"warnings": ["the mean confidence fell"]}


def measured(*gain):
    return {"answers": 50, "zero_shot": [0.5, 0.4, 0.6], "model": [0.6, 0.5, 0.7], "gain": list(gain)}


@pytest.mark.parametrize(
    "selection, label_free, reviewed",
    [
        ({"alpha": 0.5, "check": CHECK}, False, True),
        ({"alpha": 0.5, "check": BAD}, True, True),
        ({"alpha": 0.5, "check": BAD, "measured": measured(0.1, -0.1, 0.3)}, True, True),
        ({"alpha": 0.5, "check": BAD, "measured": measured(-0.2, -0.3, -0.1)}, False, False),
        ({"alpha": 0.0, "check": BAD}, False, False),
    ],
    ids=["no warning", "a warning", "answers that show nothing", "answers that show a loss", "zero-shot"],
)
def test_people_are_asked_where_their_answers_may_change_what_the_gate_said(work, selection, label_free, reviewed):
    bundle = recorded(work, **selection)
    assert (answers_may_decide(bundle, "label-free"), answers_may_decide(bundle, "reviewed")) == (label_free, reviewed)
    assert not answers_may_decide(bundle, "labelled") and not answers_may_decide(bundle, "none")


def test_a_review_of_an_earlier_version_holds_nothing_up(work, tmp_path):
    add_answers(str(work), answers(work, 80))
    file = work / "reviews" / KEY / "review.json"
    file.write_text(file.read_text().replace('"format":2', '"format":1'))
    select_by_answers(str(work), KEY, str(work / "bundle"), digits().classifier)
    assert load_description(str(work / "bundle")).provenance.selection is None and not has_new_answers(str(work), KEY)
    assert asked_at(work, tmp_path / "out")["pictures"] == 70, "answers are kept"
