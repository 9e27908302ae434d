"""What people's answers do to labels and model, and what they measure."""

import csv
import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml

from must.answers.answers_file import Answer, append, append_answers
from must.answers.estimate import Sample, accept
from must.answers.population import POPULATION_FILE, record_population, shorten
from must.api.demo import find_assets
from must.api.model import load
from must.config import ClassifierConfig, EvaluateConfig, ExportConfig, ShardConfig
from must.data.format import load_index, read_hashes
from must.data.reader import ShardReader
from must.data.shards.build import shard
from must.evaluation.evaluate import evaluate
from must.exporting.export import export
from must.memory import measure
from must.model.bundle import load_bundle
from must.model.classifier import classifier
from must.model.description import load_description
from must.prediction.onnx_model import find_measured_abstention
from tests.memory.refining import accuracy, answer_lines, answered, run, selection, trained
from tests.memory.remembering import unlabeled_digits
from tests.serving.server import running


def test_answered_images_keep_their_answer_and_similar_ones_learn_from_it(digits, truth, tmp_path, capsys):
    """Answers that name the next class, about a third of the images. One of them is about no image of the shards."""
    classes = load_description(digits.adapted).classes
    after = dict(zip(classes, classes[1:] + classes[:1], strict=True))
    _, before = run(digits, trained(digits, tmp_path), alpha=1.0)
    summary, rows = run(digits, tmp_path, alpha=1.0, answers=answered(tmp_path / "review", truth[:50], after.get))
    assert summary["answers"] == 50 and "1 answer left out" in capsys.readouterr().out
    asked, label = {name for name, *_ in truth[:50]}, {name: after[label] for name, _, label in truth}
    mine = [row for row in rows if row["image"] in asked]
    assert [row["class"] for row in mine] == [label[row["image"]] for row in mine] and len(mine) == 50
    assert {(row["probability"], row["by"]) for row in mine} == {("1.000000", "person: ann")}
    others = [(new, old) for new, old in zip(rows, before, strict=True) if new["image"] not in asked]
    assert all(
        new["without_memory"] == old["without_memory"] and new["zero_shot"] == old["zero_shot"] for new, old in others
    )
    taught = [new["class"] == label[new["image"]] for new, old in others if new["class"] != old["class"]]
    assert len(taught) > 20 and np.mean(taught) > 0.7
    bundle = load_bundle(str(tmp_path / "model"))
    assert bundle.memory.facts.answers == 50 and len(bundle.memory.correction)
    assert selection(tmp_path).measured.answers == 50


def test_true_answers_improve_the_other_labels_and_what_they_measure_is_recorded(digits, truth, tmp_path):
    label = {name: own for name, _, own in truth}
    asked = {name for name, *_ in truth[:60]}
    _, before = run(digits, tmp_path)
    _, after = run(digits, tmp_path, answers=answered(tmp_path / "review", truth[:60]))
    others = [[row for row in rows if row["image"] not in asked] for rows in (before, after)]
    assert accuracy(others[1], label, "class") > accuracy(others[0], label, "class") + 0.02
    measured = selection(tmp_path).measured
    right = [row["zero_shot"] == label[row["image"]] for row in after if row["image"] in asked]
    assert measured.answers == 60 and measured.zero_shot.value == pytest.approx(np.mean(right))
    assert 0.5 < measured.with_answers.value < 1, "by cross-validation: an image's own answer is left out"


def test_answers_measure_only_the_images_that_they_were_drawn_from(digits, truth, tmp_path, capsys):
    """Of 150 images, 60 are recorded: the others were added later."""
    answers, contents = tmp_path / "review", [int(sha256[:16], 16) for _, sha256, _ in truth]
    answers.mkdir()
    record_population(str(answers), np.array(contents[:60], np.uint64), shorten([]))
    append(answers / "answers.jsonl", *answer_lines(truth[:30]))
    summary, rows = run(digits, tmp_path, answers=str(answers), risk=0.5)
    shown, added = capsys.readouterr().out, {name for name, *_ in truth[60:]}
    assert (
        "not measured: 90 pictures that were added later" in shown
        and "are left, 90 pictures of them added later than the answers. Then at most 50 in 100" in shown
    )
    found = summary["accepted"]
    assert [found[name] for name in ("pictures", "answered", "unmeasured")] == [150, 30, 90]
    assert found["accepted"] == 30 and selection(tmp_path).measured.unmeasured == 90
    assert {row["accepted"] for row in rows if row["image"] in added} == {"false"}
    (answers / POPULATION_FILE).unlink()
    assert run(digits, tmp_path, answers=str(answers))[0]["accepted"] is None
    shown = capsys.readouterr()
    assert "30 answers drawn at random measure nothing: population.npy" in shown.out + shown.err


def test_images_of_a_class_that_is_gone_stay_in_the_sample_and_count_as_wrong(digits, truth, tmp_path, capsys):
    answers = answered(tmp_path / "review", truth[:40], lambda label: "gone" if label == "one" else label)
    gone = sum(label == "one" for *_, label in truth[:40])
    summary, _ = run(digits, tmp_path, answers=answers)
    measured, shown = selection(tmp_path).measured, capsys.readouterr()
    assert (summary["answers"], measured.answers) == (40 - gone, 40) and gone
    assert measured.with_answers.value <= 1 - gone / 40
    accepted, rows = run(digits, tmp_path, answers=answers, risk=0.9)
    asked = {row["image"]: row["accepted"] for row in rows if row["image"] in {name for name, *_ in truth[:40]}}
    named = {name: "false" if label == "one" else "true" for name, _, label in truth[:40]}
    assert asked == named and accepted["accepted"]["answered"] == 40 - gone, "nobody has named it"
    assert accepted["accepted"]["accepted"] == 110
    assert f"{gone} answers with a class that is no longer there: they teach nothing" in shown.out + shown.err


def test_none_of_the_classes_from_before_a_class_was_added_teaches_nothing(digits, truth, tmp_path, capsys):
    folder = answered(tmp_path / "review", truth[:10])
    none = [Answer(sha256, None, sampled="random") for _, sha256, _ in truth[10:15]]
    append_answers(tmp_path / "review/answers.jsonl", load_description(digits.adapted).classes[1:], none)
    summary, _ = run(digits, tmp_path, answers=folder)
    shown = capsys.readouterr()
    assert summary["answers"] == 10 and selection(tmp_path).measured.answers == 15
    assert "5 answers of none of the classes, from before a name was added" in shown.out + shown.err


def test_copies_of_a_picture_are_one_label_and_one_answer(digits, tmp_path):
    """And are all accepted, or none."""
    shards, names = unlabeled_digits(tmp_path, 60)
    for name in names:
        for number in range(2):
            shutil.copy(tmp_path / "images" / name, tmp_path / "images" / f"{number}-{name}")
    again = str(tmp_path / "again")
    shard(ShardConfig(source=str(tmp_path / "images"), output=again, workers=1))
    reader, found = ShardReader(shards, "train"), {}
    rows = [reader.description(number) for number in range(20)]
    asked = [(row["source"], row["sha256"], names[row["source"]]) for row in rows]
    other = "zero" if asked[0][2] != "zero" else "one"
    asked[0] = (*asked[0][:2], other)
    for place in (shards, again):
        folder = answered(tmp_path / f"of-{Path(place).name}", asked, shards=place)
        summary, table = run(digits, tmp_path, shards=place, answers=folder, risk=0.3)
        said = {name: {(r["class"], r["accepted"]) for r in table if r["image"].endswith(name)} for name in names}
        assert {len(values) for values in said.values()} == {1} and said[asked[0][0]] == {(other, "true")}
        assert load_bundle(str(tmp_path / "model")).memory.facts.answers == summary["answers"] == 20
        assert sum(row["images"] for row in summary["classes"]) == 40
        found[place] = [summary["accepted"][name] for name in ("pictures", "answered", "answers")]
    assert len(table) == 180 and found[shards] == found[again] == [60, 20, 20]


def test_who_removes_answered_pictures_of_none_of_the_classes_does_not_improve_what_they_measure(
    digits, many, drawn, tmp_path, capsys
):
    """Threes are none of the classes; 90 random answers, and the answered threes are removed."""
    pictures = drawn[:90]
    answers = answered(tmp_path / "review", pictures, lambda label: None if label == "three" else label, shards=many[0])
    removed = {name for name, _, label in pictures if label == "three"}
    (tmp_path / "left").mkdir()
    for name in many[1].keys() - removed:
        shutil.copy(Path(many[0]).parent / "images" / name, tmp_path / "left" / name)
    left = str(tmp_path / "shards")
    shard(ShardConfig(source=str(tmp_path / "left"), output=left, workers=1))
    summary, rows = run(digits, tmp_path, shards=left, answers=answers, risk=0.1)
    measured, shown = selection(tmp_path).measured, capsys.readouterr()
    assert f"{len(removed)} of these answers count as wrong" in shown.out + shown.err and len(removed) > 5
    right = [row["class"] == many[1][row["image"]] for row in rows]
    assert measured.answers == 90 and measured.labels.low <= np.mean(right), "rather too little than too much"
    others = [row for row in rows if row["image"] not in {name for name, *_ in pictures}]
    taken = [row for row in others if row.get("accepted") == "true"]
    assert sum(row["class"] != many[1][row["image"]] for row in taken) <= 0.1 * summary["accepted"]["pictures"]
    assert selection(tmp_path).abstention is None
    (tmp_path / "review/population.npy").unlink()
    record_population(answers, read_hashes(left, load_index(left), "train"), shorten([]))  # as if none was removed
    assert len(taken) < run(digits, tmp_path, shards=left, answers=answers, risk=0.1)[0]["accepted"]["accepted"]


def test_a_class_may_have_the_name_of_none_of_the_classes(digits, truth, tmp_path):
    bundle = load_bundle(digits.zero_shot)
    names = ["none of these", *bundle.description.classes[1:]]
    classes = tmp_path / "classes.yaml"
    classes.write_text(yaml.safe_dump({"classes": [{"name": n, "prompts": [f"a {n}"]} for n in names]}))
    weights = str(tmp_path / "classifier.safetensors")
    classifier(ClassifierConfig(classes=str(classes), model=str(find_assets()), output=weights, device="cpu"))
    answers = answered(tmp_path / "review", truth[:40], lambda label: "none of these" if label == "zero" else label)
    summary, _ = run(digits, tmp_path, classifier=weights, answers=answers)
    assert sum(row["images"] for row in summary["classes"]) == 110


def test_pictures_that_are_answered_on_screens_enter_the_test_as_right_ones(digits, many, drawn, tmp_path, monkeypatch):
    """100 random answers; then every second of the others on screens."""
    samples = list[Sample]()

    def seen(risk, sample, *more, **counts):
        samples.append(sample)
        return accept(risk, sample, *more, **counts)

    monkeypatch.setattr(measure, "accept", seen)
    pictures = drawn
    answers = answered(tmp_path / "review", pictures[:100], shards=many[0])
    summary, rows = run(digits, tmp_path, shards=many[0], answers=answers)
    surest = sorted(rows, key=lambda row: -float(row["probability"]))
    sure = {row["image"] for row in surest[100::2]}
    lines = answer_lines(picture for picture in pictures if picture[0] in sure)
    append(tmp_path / "review/answers.jsonl", *(line | {"sampled": "screen"} for line in lines))
    again, rows = run(digits, tmp_path, shards=many[0], answers=answers)
    assert [(len(one.ranks), len(one.known)) for one in samples] == [(100, 0), (100, 200)]
    assert 0.3 < np.mean(samples[1].known) < 0.7, "without these answers they are as sure as the others"
    found = again["accepted"]
    assert (found["answers"], found["answered"], found["pictures"]) == (100, 300, 500)
    assert found["accepted"] < summary["accepted"]["accepted"]


@pytest.mark.slow
def test_labels_that_can_be_accepted_are_marked(digits, many, drawn, tmp_path, capsys):
    pictures = drawn[:240]
    answers = answered(tmp_path / "review", pictures, shards=many[0])
    summary, rows = run(digits, tmp_path, shards=many[0], answers=answers, risk=0.03)
    asked = {line["image"] for line in map(json.loads, (tmp_path / "review/answers.jsonl").read_text().splitlines())}
    others = [row for row in rows if row["image"] not in asked]
    assert all(row["accepted"] == "true" for row in rows if row["image"] in asked)
    taken, found = [row for row in others if row["accepted"] == "true"], summary["accepted"]
    assert 100 < len(taken) == found["accepted"] < len(others) == 260 and found["promise"] == "set"
    wrong = sum(row["class"] != many[1][row["image"]] for row in taken)
    assert wrong <= 0.03 * 500
    assert {row["accepted"] for row in others} == {"true", "false"}
    told = found["text"] + capsys.readouterr().out
    assert f"500 pictures: 240 answered, {len(taken)} need not be looked at, {260 - len(taken)} are left." in told
    right = [row["class"] == many[1][row["image"]] for row in rows]
    labels = selection(tmp_path).measured.labels
    assert labels.low <= np.mean(right) <= labels.high and "240 of them answers" in told
    assert labels.value > selection(tmp_path).measured.with_answers.value
    classes = summary["classes"]
    assert sum(row["images"] for row in classes) == 260 and sum(row["accepted"] for row in classes) == len(taken)
    assert sum(row["answers"] for row in classes) == 240
    assert [row["light"] for row in classes] == sorted((row["light"] for row in classes), key="poor unsure good".find)
    unsure = selection(tmp_path).abstention
    assert unsure.by == "answers" and unsure.images == 240 and 0 < unsure.threshold < 1 and unsure.bound <= 0.03
    assert find_measured_abstention(None, selection(tmp_path))["threshold"] == unsure.threshold
    alone, rows = run(digits, tmp_path, shards=many[0], answers=answers, promise="accepted")
    others = [row for row in rows if row["image"] not in asked and row["accepted"] == "true"]
    assert 100 < len(others) == alone["accepted"]["accepted"] <= len(taken)
    assert accuracy(others, many[1], "class") >= 0.95
    assert f"{len(others)} of the 260 labels without an answer can be accepted" in capsys.readouterr().out
    summary, rows = run(digits, tmp_path, shards=many[0], answers=answers, risk=0.001)
    assert summary["accepted"]["accepted"] == 0 and "accepted" not in rows[0]


def test_accepted_labels_stay_as_they_were_while_what_is_left_is_named(digits, many, drawn, tmp_path):
    """Without the page: by lines in answers.jsonl, and `must refine`."""
    pictures = {one[0]: one for one in drawn}
    answers = answered(tmp_path / "review", [*pictures.values()][:150], shards=many[0])

    def refined():
        summary, table = run(digits, tmp_path, shards=many[0], answers=answers, risk=0.03)
        return summary["accepted"], {row["image"]: (row["class"], row["accepted"]) for row in table}

    before, labels = refined()
    left = [name for name, (_, accepted) in labels.items() if accepted == "false"]
    assert len(left) == before["left"] > 0
    file = tmp_path / "review/answers.jsonl"
    for part in (left[: len(left) // 2], left[len(left) // 2 :]):
        append(file, *(line | {"sampled": "left"} for line in answer_lines([pictures[name] for name in part])))
        now, after = refined()
        assert now["accepted"] == before["accepted"] and now["left"] == before["left"] - now["answered"] + 150
    assert now["left"] == 0 and {accepted for _, accepted in after.values()} == {"true"}
    assert all(after[name] == labels[name] for name in after.keys() - left)
    assert refined() == (now, after), "also again"
    (tmp_path / "review/accepted-0.03.npz").rename(tmp_path / "aside.npz")
    assert refined()[0]["left"] > 0, "they are found anew"
    (tmp_path / "aside.npz").rename(tmp_path / "review/accepted-0.03.npz")
    unsure = next(name for name in labels if name not in left and name not in [*pictures][:150])
    append(file, {"sha256": pictures[unsure][1], "unsure": True})
    now, after = refined()
    assert after[unsure][1] == "false" and now["unsure"] == 1 and now["left"] == 0, "nothing is promised of it"
    name, sha256, label = next(iter(pictures.values()))
    append(file, *answer_lines([(name, sha256, "one" if label != "one" else "two")]))
    assert refined()[0]["left"] > 0, "an answer that they rest on was changed"


def test_an_image_of_none_of_the_classes_has_no_label_and_answers_on_screens_measure_nothing(digits, truth, tmp_path):
    answers = answered(tmp_path / "review", truth[:30], lambda _: None, sampled="screen")
    summary, rows = run(digits, trained(digits, tmp_path), answers=answers)
    names = {name for name, *_ in truth[:30]}
    assert summary["answers"] == 30 and {row["image"] for row in rows if row["class"] == "none of these"} >= names
    assert all(row["probability"] == "1.000000" and row["without_memory"] for row in rows if row["image"] in names)
    assert selection(tmp_path).measured is None and selection(tmp_path).alpha == 1


@pytest.mark.slow
def test_images_like_those_of_none_of_the_classes_get_no_class_in_every_output(digits, many, drawn, tmp_path, capsys):
    """Threes are none of the classes for the person who answers."""
    pictures = drawn[:90]
    answers = answered(tmp_path / "review", pictures, lambda label: None if label == "three" else label, shards=many[0])
    summary, table = run(digits, tmp_path, shards=many[0], answers=answers)
    shown = capsys.readouterr().out
    assert "the model names no class for at most 3." in shown
    asked = {name for name, *_ in pictures}
    threes, named = (
        [row for row in table if row["image"] not in asked and (many[1][row["image"]] == "three") == three]
        for three in (True, False)
    )
    assert (
        np.mean([row["class"] == "none of these" for row in threes])
        > 0.9
        > 0.05
        > np.mean([row["class"] == "none of these" for row in named])
    )
    none = sum(row["class"] == "none of these" for row in threes + named)
    lights = {row["class"]: row for row in summary["classes"]}
    assert lights["none of these"]["images"] == none and lights["none of these"]["answers"] > 0
    assert selection(tmp_path).measured.with_answers.value > selection(tmp_path).measured.model.value + 0.05

    model, report = str(tmp_path / "model"), tmp_path / "report"
    export(ExportConfig(model=model, shards=digits.shards, split="test", output=str(tmp_path / "onnx")))
    assert "the rest is the probability of none of the classes" in (tmp_path / "onnx/README.md").read_text()
    evaluate(EvaluateConfig(model=model, shards=digits.shards, output=str(report), workers=0, device="cpu"))
    of_report = list(csv.DictReader(io.StringIO((report / "predictions.csv").read_text())))
    images = [str(path) for path in sorted((digits.images / "test").rglob("*.png"))]
    predictions = [load(place)(images) for place in (model, tmp_path / "onnx")]
    for one, other in zip(*predictions, strict=True):
        assert one.name == other.name and one.probability == pytest.approx(other.probability, abs=1e-4)
    found = {Path(one.image).name: one for one in predictions[1]}
    for row in of_report:  # features in half precision: 2.2e-4 seen, by the arithmetic of old processors
        assert float(row["adapted_probability"]) == pytest.approx(found[Path(row["source"]).name].probability, abs=4e-4)
    abstained = [(one.abstained, "/three/" in one.image) for one in predictions[1]]
    assert np.mean([shown == three for shown, three in abstained]) > 0.95
    metrics = evaluate(EvaluateConfig(model=model, shards=digits.shards, output=str(report), risk=0.3, device="cpu"))
    named = [not one.abstained for one in load(model).predict(images, abstain=metrics.abstention.threshold)]
    one = 1 / len(images)  # the picture whose probability is the threshold is rounded either way
    assert metrics.abstention.coverage == pytest.approx(np.mean(named), abs=one + 1e-9) and np.mean(named) < 0.95
    with running("--model", tmp_path / "onnx") as server:
        served = [server.ask("POST", "/classify", Path(one.image).read_bytes())[1] for one in predictions[1][:40]]
    assert [row["class"] for row in served] == [one.name for one in predictions[1][:40]]
