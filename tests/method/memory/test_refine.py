"""`must refine` on the bundled digits: labels, the model's memory, people's answers and alpha."""

import contextlib
import csv
import io
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from must.api.cli import main
from must.api.demo import TEMPLATES
from must.api.model import load
from must.base import storage
from must.config import EvaluateConfig, ExportConfig, RefineConfig, ShardConfig
from must.data.augment.normalize import normalize
from must.data.format.index import load_index
from must.data.image.decode import decode_view
from must.data.image.preprocess import EvalView
from must.data.loading.reader import ShardReader
from must.data.shards.build import shard
from must.data.shards.history import read_hashes
from must.deploy.export.export import export, measured_abstention
from must.deploy.predict.session import OnnxClassifier
from must.evaluation.evaluate import evaluate
from must.method.answers.answers_file import Answer, append, append_answers, hash_answers
from must.method.answers.population import POPULATION_FILE, record_population, shorten
from must.method.answers.review import fingerprint
from must.method.memory import refine as refine_module
from must.method.memory.alpha import best_candidate, interpolate
from must.method.memory.refine import refine
from must.method.model.bundle import load_bundle, save_bundle
from must.method.model.description import MemoryFacts, get_preprocess, load_description
from tests.common import ended
from tests.data.shards.test_shard import tree
from tests.deploy.serve.server import running
from tests.evaluation.digits import digits as digits_once
from tests.method.memory.remembering import unlabeled_digits
from tests.method.train import lives
from tests.method.train.lives import same


def flags(digits, folder):
    places = {"shards": digits.shards, "classifier": digits.classifier}
    return places | {"model": str(folder / "model"), "output": str(folder / "labels")}


def run(digits, folder, **changes):
    """(refined.json, rows of predictions.csv) of the model in the folder."""
    summary = refine(RefineConfig(**{**flags(digits, folder), "workers": 0, "device": "cpu", **changes}))
    assert json.loads((folder / "labels/refined.json").read_text()) == summary
    return summary, list(csv.DictReader(io.StringIO((folder / "labels/predictions.csv").read_text())))


def trained(digits, folder):
    """A folder with a copy of the tuned model."""
    shutil.copytree(digits.adapted, folder / "model")
    return folder


def weights(folder):
    """Those that classify."""
    return lives.weights(folder, "visual.", "classifier")


def selection(folder):
    return load_description(str(folder / "model")).provenance.selection


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """(shards of 500 unlabeled digits, their classes by file name)."""
    return unlabeled_digits(tmp_path_factory.mktemp("many"), 500)


@pytest.fixture(scope="module")
def truth(digits):
    """[(image, sha256, class)] of the digits' unlabeled split, in another order than there."""
    reader = ShardReader(digits.shards, "train")
    rows = [reader.description(number) for number in range(len(reader))]
    return [(row["source"], row["sha256"], row["label"]) for row in np.random.default_rng(0).permutation(rows)]


@pytest.fixture(scope="module")
def zero_shot(digits, many, tmp_path_factory):
    folder = tmp_path_factory.mktemp("zero-shot")
    return folder, *run(digits, folder, shards=many[0])


def accuracy(rows, truth, column):
    return np.mean([row[column] == truth[row["image"]] for row in rows])


def test_labels_are_better_than_zero_shots(zero_shot, many):
    _, summary, rows = zero_shot
    assert len(rows) == summary["images"] == 500 and {row["image"] for row in rows} == set(many[1])
    assert list(rows[0]) == ["image", "class", "probability", "zero_shot", "zero_shot_probability"]
    assert accuracy(rows, many[1], "class") > accuracy(rows, many[1], "zero_shot") + 0.02
    assert summary["changed"] == pytest.approx(np.mean([row["class"] != row["zero_shot"] for row in rows]))
    assert all(0 < float(row[f"{name}probability"]) <= 1 for row in rows for name in ("", "zero_shot_"))


def test_a_model_that_is_not_there_yet_is_zero_shots_with_a_memory_and_better_on_new_images(digits, zero_shot):
    folder, summary, _ = zero_shot
    description = load_description(str(folder / "model"))
    assert description.provenance.memory.images == 500 and description.weights_sha256 == summary["weights_sha256"]
    assert (description.provenance.selection.alpha, description.provenance.selection.by) == (0, "not trained")
    assert same(weights(folder / "model"), weights(digits.zero_shot))
    values = {"model": str(folder / "model"), "baseline": digits.classifier, "shards": digits.shards}
    found = evaluate(EvaluateConfig(**values, output=str(folder / "report"), workers=0, device="cpu"))
    assert found.labelled == 120 and found.adapted.top1 > found.baseline.top1 + 0.02


def test_the_same_again_gives_the_same_bytes(digits, zero_shot, many, tmp_path):
    shutil.copytree(zero_shot[0] / "model", tmp_path / "model")
    run(digits, tmp_path, shards=many[0], workers=1)
    for name in ("model/model.safetensors", "model/model.json", "labels/predictions.csv"):
        assert (tmp_path / name).read_bytes() == (zero_shot[0] / name).read_bytes(), name


def test_a_trained_model_gets_its_memory_in_place(digits, tmp_path):
    _, rows = run(digits, trained(digits, tmp_path), memory_images=100)
    after = load_description(str(tmp_path / "model")).provenance
    before = load_description(digits.adapted).provenance
    assert same(weights(tmp_path / "model"), weights(digits.adapted)) and after.config == before.config
    assert after.memory.images == 100 and len(rows) == 150
    assert list(rows[0])[-2:] == ["model", "model_probability"]
    assert after.selection.alpha == 1 and after.selection.check.images == 150 and not after.selection.check.warnings


def answered(folder, pictures, say=lambda label: label, sampled="random", shards=""):
    folder.mkdir(exist_ok=True)
    shards = shards or digits_once().shards
    record_population(str(folder), read_hashes(shards, load_index(shards), "train"), shorten([]))
    lines = answer_lines((name, sha256, say(own)) for name, sha256, own in pictures)
    gone = {"image": "gone", "sha256": "0" * 64, "label": "one"}
    append(folder / "answers.jsonl", *(line | {"sampled": sampled} for line in (*lines, gone)))
    return str(folder)


def answer_lines(pictures):
    return [{"image": n, "sha256": sha256, "label": label, "sampled": "random"} for n, sha256, label in pictures]


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
    assert {row["probability"] for row in mine} == {"1.000000"}
    others = [(new, old) for new, old in zip(rows, before, strict=True) if new["image"] not in asked]
    assert all(new["model"] == old["model"] and new["zero_shot"] == old["zero_shot"] for new, old in others)
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
        "not measured: 90 images that were added later" in shown
        and "Of 90 images that were added later: none." in shown
    )
    assert summary["accepted"]["images"] == 30 and selection(tmp_path).measured.unmeasured == 90
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
    assert f"{gone} answers with a class that is no longer there: they teach nothing" in shown.out + shown.err


def test_none_of_the_classes_from_before_a_class_was_added_teaches_nothing(digits, truth, tmp_path, capsys):
    folder = answered(tmp_path / "review", truth[:10])
    none = [Answer(sha256, None, sampled="random") for _, sha256, _ in truth[10:15]]
    append_answers(tmp_path / "review/answers.jsonl", load_description(digits.adapted).classes[1:], none)
    summary, _ = run(digits, tmp_path, answers=folder)
    shown = capsys.readouterr()
    assert summary["answers"] == 10 and selection(tmp_path).measured.answers == 15
    assert "5 answers of none of the classes, from before a name was added" in shown.out + shown.err


@pytest.mark.parametrize("known, verdict", [(140, "the present list fits better"), (0, "is not known")])
def test_answers_say_which_of_two_lists_fits_better(digits, truth, tmp_path, capsys, known, verdict):
    classes = load_description(digits.adapted).classes
    dogs = {name: {"name": name, "prompts": ["a photo of a dog"]} for name in ("two", "three")}
    other = [dogs.get(name, name) for name in classes]
    (tmp_path / "new.yaml").write_text(
        yaml.safe_dump({"classes": other if known else [*other, "ten"], "templates": list(TEMPLATES)})
    )
    answers = answered(tmp_path / "review", truth[:known], lambda label: None if label == "one" else label)
    before = tree(tmp_path)
    values = flags(digits, tmp_path) | {"classes": str(tmp_path / "new.yaml"), "answers": answers}
    result = refine(RefineConfig(**values, workers=0, device="cpu"))
    assert tree(tmp_path) == before and verdict in capsys.readouterr().out
    ones = sum(label == "one" for *_, label in truth[:known])
    assert [len(result["measured"]), *result["measured"][:1]] == ([6, known - ones] if known else [0])
    assert result["added"] == ([] if known else ["ten"])


def test_a_list_without_a_class_that_there_is_does_not_fit_better(digits, truth, tmp_path, capsys):
    names = ",".join(name for name in load_description(digits.adapted).classes if name != "three")
    values = flags(digits, tmp_path) | {"classes": names, "answers": answered(tmp_path / "review", truth)}
    _, before, after, *_ = refine(RefineConfig(**values, workers=0, device="cpu"))["measured"]
    shown = capsys.readouterr().out
    assert after < before and "fits better: by" not in shown.replace("the present list fits better", "")


def test_every_copy_of_an_answered_image_has_the_answer_and_it_counts_once(digits, tmp_path):
    _, names = unlabeled_digits(tmp_path, 40)
    name, label = next(iter(names.items()))
    for copy in ("0-first.png", "z-last.png"):
        shutil.copy(tmp_path / "images" / name, tmp_path / "images" / copy)
    shards = str(tmp_path / "again")
    shard(ShardConfig(source=str(tmp_path / "images"), output=shards, workers=1))
    sha256 = fingerprint((tmp_path / "images" / name).read_bytes())
    other = "zero" if label != "zero" else "one"
    folder = answered(tmp_path / "review", [(name, sha256, other)], shards=shards)
    summary, rows = run(digits, tmp_path, shards=shards, answers=folder)
    said = {row["image"]: (row["class"], row["probability"]) for row in rows}
    assert {said[copy] for copy in (name, "0-first.png", "z-last.png")} == {(other, "1.000000")}
    assert summary["answers"] == 1 and load_bundle(str(tmp_path / "model")).memory.facts.answers == 1


def test_labels_that_can_be_accepted_are_marked(digits, many, tmp_path, capsys):
    reader = ShardReader(many[0], "train")
    rows = [reader.description(number) for number in np.random.default_rng(0).permutation(500)[:240].tolist()]
    pictures = [(row["source"], row["sha256"], many[1][row["source"]]) for row in rows]
    answers = answered(tmp_path / "review", pictures, shards=many[0])
    summary, rows = run(digits, tmp_path, shards=many[0], answers=answers)
    asked = {line["image"] for line in map(json.loads, (tmp_path / "review/answers.jsonl").read_text().splitlines())}
    others = [row for row in rows if row["image"] not in asked]
    assert all(row["accepted"] == "true" for row in rows if row["image"] in asked)
    taken, found = [row for row in others if row["accepted"] == "true"], summary["accepted"]
    assert 100 < len(taken) == found["accepted"] <= found["images"] == len(others) == 260
    assert accuracy(taken, many[1], "class") >= 0.95 and min(float(row["probability"]) for row in taken) > 0.5
    assert {row["accepted"] for row in others} == {"true", "false"}
    told = found["text"] + capsys.readouterr().out
    assert f"{len(taken)} of 260 labels can be accepted without review: at most 5 in 100" in told
    classes = summary["classes"]
    assert sum(row["images"] for row in classes) == 260 and sum(row["accepted"] for row in classes) == len(taken)
    assert sum(row["answers"] for row in classes) == 240
    assert [row["light"] for row in classes] == sorted((row["light"] for row in classes), key="poor unsure good".find)
    unsure = selection(tmp_path).abstention
    assert unsure.by == "answers" and unsure.images == 240 and 0 < unsure.threshold < 1 and unsure.bound <= 0.05
    assert measured_abstention(None, selection(tmp_path))["threshold"] == unsure.threshold
    summary, rows = run(digits, tmp_path, shards=many[0], answers=answers, risk=0.001)
    assert summary["accepted"]["accepted"] is None and "accepted" not in rows[0]


def test_an_image_of_none_of_the_classes_has_no_label_and_pictures_by_coverage_measure_nothing(digits, truth, tmp_path):
    answers = answered(tmp_path / "review", truth[:30], lambda _: None, sampled="coverage")
    summary, rows = run(digits, trained(digits, tmp_path), answers=answers)
    names = {name for name, *_ in truth[:30]}
    assert summary["answers"] == 30 and {row["image"] for row in rows if not row["class"]} >= names
    assert all(row["probability"] == "1.000000" and row["model"] for row in rows if row["image"] in names)
    assert selection(tmp_path).measured is None and selection(tmp_path).alpha == 1


def test_images_like_those_of_none_of_the_classes_get_no_class_in_every_output(digits, many, tmp_path):
    """Threes are none of the classes for the person who answers."""
    reader = ShardReader(many[0], "train")
    rows = [reader.description(number) for number in np.random.default_rng(0).permutation(500)[:90].tolist()]
    pictures = [(row["source"], row["sha256"], many[1][row["source"]]) for row in rows]
    answers = answered(tmp_path / "review", pictures, lambda label: None if label == "three" else label, shards=many[0])
    summary, table = run(digits, tmp_path, shards=many[0], answers=answers)
    asked = {name for name, *_ in pictures}
    threes, named = (
        [row for row in table if row["image"] not in asked and (many[1][row["image"]] == "three") == three]
        for three in (True, False)
    )
    assert np.mean([row["class"] == "" for row in threes]) > 0.9 > 0.05 > np.mean([row["class"] == "" for row in named])
    finding, none = summary["misfits"][0], sum(row["class"] == "" for row in threes + named)
    assert finding["kind"] == "none" and finding["images"] == none and finding["examples"][0].startswith("three")
    lights = {row["class"]: row for row in summary["classes"]}
    assert lights["none of these"]["images"] == none and len(lights["none of these"]["samples"]) == 3
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
    for row in of_report:
        assert float(row["adapted_probability"]) == pytest.approx(found[Path(row["source"]).name].probability, abs=2e-4)
    abstained = [(one.abstained, "/three/" in one.image) for one in predictions[1]]
    assert np.mean([shown == three for shown, three in abstained]) > 0.95
    metrics = evaluate(EvaluateConfig(model=model, shards=digits.shards, output=str(report), risk=0.3, device="cpu"))
    named = [not one.abstained for one in load(model).predict(images, abstain=metrics.abstention.threshold)]
    assert metrics.abstention.coverage == pytest.approx(np.mean(named), abs=1e-9) and np.mean(named) < 0.95
    with running("--model", tmp_path / "onnx") as server:
        served = [server.ask("POST", "/classify", Path(one.image).read_bytes())[1] for one in predictions[1][:40]]
    assert [row["class"] for row in served] == [one.name for one in predictions[1][:40]]


def test_alpha_changes_only_if_another_is_right_more_often_beyond_the_error():
    correct = np.repeat(np.random.default_rng(0).random((1, 50)) < 0.7, 3, axis=0)
    assert best_candidate(correct, 1) == 1
    one_more, many_more = correct.copy(), correct.copy()
    one_more[2, np.flatnonzero(~correct[2])[:1]] = True
    many_more[2, np.flatnonzero(~correct[2])[:10]] = True
    assert best_candidate(one_more, 1) == 1 and best_candidate(many_more, 1) == 2


@pytest.mark.parametrize("count, alpha", [(60, 0.0), (19, 1.0)])
def test_answers_against_the_model_choose_zero_shots_weights(digits, truth, tmp_path, count, alpha):
    """Somebody agrees with zero-shot's labels on every picture; 19 answers are too few to choose."""
    _, rows = run(digits, tmp_path)
    says = {row["image"]: row["class"] for row in rows}
    shutil.rmtree(tmp_path / "model")
    pictures = [(name, sha256, says[name]) for name, sha256, _ in truth[:count]]
    run(digits, trained(digits, tmp_path), answers=answered(tmp_path / "review", pictures))
    chosen = selection(tmp_path)
    assert chosen.alpha == alpha and (chosen.by == "60 answers") == (alpha == 0)
    assert same(weights(tmp_path / "model"), weights(digits.adapted if alpha else digits.zero_shot))


def test_another_alpha_begins_with_the_trained_weights_again_and_stays(digits, truth, tmp_path):
    trained(digits, tmp_path)
    for alpha in (0.5, 0.25, 1.0, 0.5):
        run(digits, tmp_path, alpha=alpha, images=20)
        network = interpolate(load_bundle(digits.zero_shot).model, load_bundle(digits.adapted).model, alpha)
        assert torch.equal(weights(tmp_path / "model")["classifier"], network.classifier)
        assert (selection(tmp_path).alpha, selection(tmp_path).by) == (alpha, "--alpha")
        assert same(weights(tmp_path / "model/adapted"), weights(digits.adapted)), alpha
    run(digits, tmp_path, answers=answered(tmp_path / "review", truth[:60]))
    assert (selection(tmp_path).alpha, selection(tmp_path).by) == (0.5, "--alpha"), "answers do not change it"


@pytest.mark.parametrize("images", [3, 1])
def test_few_images_have_labels_and_a_memory_too(digits, tmp_path, images):
    summary, rows = run(digits, tmp_path, images=images)
    facts = load_description(str(tmp_path / "model")).provenance.memory
    assert summary["images"] == len(rows) == images and facts == MemoryFacts(images, 0, facts.shared)


def test_a_model_that_collapsed_is_warned_of(digits, tmp_path, capsys):
    bundle = load_bundle(digits.adapted)
    bundle.model.classifier.data[:, 1:] = -bundle.model.classifier.data[:, :1]  # all images are zeros
    save_bundle(str(tmp_path / "model"), bundle.model, bundle.description)
    run(digits, tmp_path)
    assert "the model predicts few of the classes" in selection(tmp_path).check.warnings[0]
    assert "warning: the model predicts few" in capsys.readouterr().err


def refused(digits, folder, capfd):
    """The line with which the command ends."""
    line = ended(capfd, 2, main, ["refine", *(f"--{name}={value}" for name, value in flags(digits, folder).items())])
    assert line.startswith("must refine: ")
    return line


@pytest.mark.parametrize("place", ["checkpoints/step", "adapted/model.json"])
def test_an_unfinished_training_is_refused(digits, tmp_path, capfd, place):
    (tmp_path / "model" / place).parent.mkdir(parents=True)
    (tmp_path / "model" / place).touch()
    assert "holds a training that is not finished" in refused(digits, tmp_path, capfd)
    assert not (tmp_path / "labels").exists()


def test_a_bundle_of_other_classes_is_refused_and_stays(digits, tmp_path, capfd):
    bundle = load_bundle(digits.adapted)
    description = bundle.description
    description.classes[0] = "cow"
    save_bundle(str(tmp_path / "model"), bundle.model, description)
    before = tree(tmp_path)
    assert "has other classes" in refused(digits, tmp_path, capfd)
    assert tree(tmp_path) == before


def test_a_version_of_a_registry_stays_as_it_was_promoted(digits, tmp_path, capfd):
    trained(digits, tmp_path)
    (tmp_path / "version.json").write_text("{}")
    before = tree(tmp_path)
    assert "is a version of a registry" in refused(digits, tmp_path, capfd) and tree(tmp_path) == before


def meanwhile(monkeypatch, action):
    """Runs `action` while `must refine` reads the images."""
    module: Any = refine_module
    read = module.read_pool
    monkeypatch.setattr(module, "read_pool", lambda *values: (action(), read(*values))[1])


def test_a_model_that_another_program_writes_meanwhile_stays(digits, tmp_path, monkeypatch):
    run(digits, tmp_path)
    meanwhile(monkeypatch, lambda: shutil.copytree(digits.adapted, tmp_path / "model", dirs_exist_ok=True))
    with pytest.raises(ValueError, match="another program has written a model there meanwhile"):
        run(digits, tmp_path)
    assert load_description(str(tmp_path / "model")) == load_description(digits.adapted)


def test_an_answer_that_comes_meanwhile_is_not_taken_for_a_used_one(digits, truth, tmp_path, monkeypatch):
    lines = [{"sha256": sha256, "label": label, "sampled": "random"} for _, sha256, label in truth[:6]]
    append(tmp_path / "answers.jsonl", *lines[:4])
    before = hash_answers(str(tmp_path))
    meanwhile(monkeypatch, lambda: append(tmp_path / "answers.jsonl", *lines[4:]))
    summary, _ = run(digits, tmp_path, answers=str(tmp_path))
    assert (summary["answers"], summary["answers_sha256"]) == (4, before) and hash_answers(str(tmp_path)) != before


@pytest.mark.parametrize("writes", [1, 2, 3], ids=["nothing", "the weights", "all but the removal"])
def test_a_save_that_is_killed_leaves_the_old_model_or_the_new_one(digits, tmp_path, monkeypatch, writes):
    run(digits, trained(digits, tmp_path))
    before, count = load_description(str(tmp_path / "model")), iter(range(9))
    write = storage.write_bytes

    def stop(*values, **options):
        if next(count) == writes:
            raise KeyboardInterrupt
        return write(*values, **options)

    new = replace(before, logit_factor=before.logit_factor * 2)
    with monkeypatch.context() as patch, contextlib.suppress(KeyboardInterrupt):
        patch.setattr(storage, "write_bytes", stop)
        save_bundle(str(tmp_path / "model"), load_bundle(digits.zero_shot).model, new)
    found = load_bundle(str(tmp_path / "model")).description
    assert found == before if writes == 1 else found.logit_factor == new.logit_factor


def test_a_full_disk_leaves_the_model_as_it_was(digits, tmp_path, monkeypatch):
    run(digits, trained(digits, tmp_path))
    before, write = tree(tmp_path / "model"), storage.write_bytes

    def full(uri, *values, **options):
        if uri.endswith(".safetensors"):
            raise OSError(28, "No space left on device")
        return write(uri, *values, **options)

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space"):
        patch.setattr(storage, "write_bytes", full)
        run(digits, tmp_path, memory_images=50)
    assert tree(tmp_path / "model") == before


@pytest.mark.slow
def test_an_int8_file_gives_no_picture_of_the_memory_a_vote_for_itself(digits, tmp_path):
    run(digits, trained(digits, tmp_path))
    values = {"model": str(tmp_path / "model"), "shards": digits.shards, "output": str(tmp_path / "onnx")}
    assert export(ExportConfig(**values, precision="int8", images=150))["check"]["agreement"] >= 0.97
    reader, bundle = ShardReader(digits.shards, "train"), load_bundle(str(tmp_path / "model"))
    preprocess = get_preprocess(bundle.description)
    pixels = np.stack([decode_view(reader.image(number), EvalView(preprocess)) for number in range(40)])
    with torch.no_grad():
        exact = bundle.classifier.classify(normalize(torch.from_numpy(pixels), preprocess))[1]
    found = OnnxClassifier(tmp_path / "onnx" / "model.onnx")(pixels).similarity
    assert np.abs(found - exact.numpy()).mean() < 0.1 and exact.mean() < 0.95
