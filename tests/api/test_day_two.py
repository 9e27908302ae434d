"""One week with one folder: `must.adapt` again, with more photos, other classes, answers, mistakes and kills."""

import html
import json
import logging
import os
import re
import shutil
import signal
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import must
from must.api import adapt as adapt_module
from must.api import work_state
from must.api.demo import CLASSES, asset_folder, digit_parts
from tests.api.conftest import MORE, PHOTOS, adapt, answer, checksums, label_of, labels, weights, write_photos
from tests.forked import CONTEXT
from tests.zoo import put

module: Any = adapt_module
STAGES = ["classifier", "shard", "refine", "evaluate"]
OTHER = {"classes": ["zero", "one", "two", "other"]}
OTHERS = [pytest.param(kind, marks=pytest.mark.slow) for kind in ("images", "generator", "tensors", "paths")]


@pytest.fixture
def ran(monkeypatch):
    names, call = [], module.call
    monkeypatch.setattr(module, "call", lambda name, **values: names.append(name) or call(name, **values))
    return names


def test_the_same_again_wherever_the_folder_is_and_however_it_is_written_does_nothing(place, ran, monkeypatch, caplog):
    before = checksums(place)
    caplog.set_level(logging.INFO, "must")
    adapt(place)
    assert caplog.messages == ["nothing has changed"]
    monkeypatch.chdir(place)
    for images in ("photos", "./photos", str(place / "photos") + "/"):
        adapt(place, images=images)
    (place / "photos").rename(place.parent / "moved")
    adapt(place, images=place.parent / "moved")
    model = shutil.copytree(asset_folder(), place.parent / "model")
    adapt(place, images=place.parent / "moved", model=model)
    (place / "work").rename(place.parent / "elsewhere")
    adapt(place, images=place.parent / "moved", output=place.parent / "elsewhere")
    assert ran == []
    (place.parent / "moved").rename(place / "photos")
    (place.parent / "elsewhere").rename(place / "work")
    assert checksums(place) == before


def test_a_copy_without_the_files_times_is_packed_and_found_to_be_the_same(place, ran, caplog):
    caplog.set_level(logging.INFO)
    before = weights(place / "work")
    for path in (place / "photos").iterdir():
        os.utime(path, (1, 1))
    adapt(place)
    assert ran == ["shard"] and "no image is new, and none gone" in caplog.text
    assert weights(place / "work") == before and not (place / "work/before").exists()
    adapt(place)
    assert ran == ["shard"], "the new times are remembered"


def test_more_photos_and_answers_that_stay(place, ran, caplog):
    caplog.set_level(logging.INFO)
    work, photos = place / "work", place / "photos"
    numbers = range(20)
    answer(work, photos, {f"IMG_{n:04d}.png": label_of(n) for n in numbers})
    first = weights(work)
    adapt(place)
    assert ran == ["refine", "evaluate"] and weights(work) != first
    assert all(labels(work)[f"IMG_{n:04d}.png"] == label_of(n) for n in numbers)

    del ran[:]
    answered = weights(work)
    put(work, {"onnx/MODEL_CARD.md": f"made of {answered}".encode()})
    write_photos(photos, range(PHOTOS, PHOTOS + MORE))
    (photos / "IMG_0039.png").unlink()
    adapt(place)
    assert ran == ["shard", "refine", "evaluate"] and f"{MORE} new images, 1 gone" in caplog.text
    assert len(labels(work)) == PHOTOS + MORE - 1
    for file in work_state.PATHS_IN:
        assert ".next-" not in (work / file).read_text(), file
    assert all(labels(work)[f"IMG_{n:04d}.png"] == label_of(n) for n in numbers), "answers are the pictures'"
    assert weights(work / "before") == answered and not list(work.glob(".*")), "nothing hidden is left"
    assert (work / "before/onnx/MODEL_CARD.md").exists() and not (work / "onnx").exists(), "it is of another model"

    del ran[:]
    before = {path.name for path in work.iterdir()}
    names = ["zero", "eleven", *CLASSES[2:], "letter"]  # one renamed, one new
    adapted = adapt(place, names)
    assert ran == ["classifier", "refine", "evaluate"] and adapted.classes == names
    assert {path.name for path in work.iterdir()} == before
    known = [n for n in numbers if label_of(n) != "one"]
    assert all(labels(work)[f"IMG_{n:04d}.png"] == label_of(n) for n in known)
    assert (work / "models").is_dir() and adapted.predict(photos / "IMG_0000.png")[0].name in names


def test_photos_with_new_names_have_them_in_the_labels(place, ran, caplog):
    caplog.set_level(logging.INFO)
    work, table = place / "work", labels(place / "work")
    for path in (place / "photos").iterdir():
        path.rename(path.with_name(f"new-{path.name}"))
    adapt(place)
    assert ran[:2] == ["shard", "refine"] and "none gone; names or copies of images changed" in caplog.text
    assert labels(work) == {f"new-{name}": label for name, label in table.items()}


def test_a_class_that_goes_is_missed_by_the_labels_of_test_images_before_the_pass(place, ran):
    folder = wrong_labels(place, ["zero", "one"])
    adapt(place, test_images=folder)
    before, _ = checksums(place / "work"), ran.clear()
    with pytest.raises(must.UserError, match=r"test_images .*: 1 label not among the classes \(one\)"):
        adapt(place, [name for name in CLASSES if name != "one"], test_images=folder)
    assert ran == ["classifier"] and checksums(place / "work") == before


def test_labelled_photos_that_are_among_the_photos_are_measured_where_they_are(place, ran):
    work, before = place / "work", weights(place / "work")
    table = place / "labels.csv"
    rows = [f"{place}/photos/IMG_{n:04d}.png,{label_of(n)}\n" for n in range(30)]
    table.write_text("image,class\n" + "".join(rows))
    assert adapt(place, test_images=table).metrics["labelled"] == 30
    assert ran == ["shard", "evaluate"] and weights(work) == before and len(labels(work)) == PHOTOS

    corrected = (label_of(0) == "one" and "two") or "one"
    table.write_text(table.read_text().replace(f"IMG_0000.png,{label_of(0)}", f"IMG_0000.png,{corrected}"))
    first = adapt(place, test_images=table).metrics["adapted"]["top1"]
    assert ran == ["shard", "evaluate"] * 2, "a corrected label is measured"
    assert adapt(place, test_images=table).metrics["adapted"]["top1"] == first
    assert ran == ["shard", "evaluate"] * 2

    folder = place / "sorted"
    for number in range(30):
        photo = (place / "photos" / f"IMG_{number:04d}.png").read_bytes()
        put(folder / label_of(number), {f"{number}.png": photo})
    assert adapt(place, test_images=folder).metrics["labelled"] == 30 and weights(work) == before
    assert adapt(place).metrics["labelled"] == 0
    assert not (work / "test").exists(), "nothing measures with labels that were withdrawn"


def wrong_labels(place, names):
    """A folder of labelled images with folders of these names."""
    for name in names:
        write_photos(place / "labelled" / name, range(12))
    return place / "labelled"


MISTAKES = {
    "one class": (lambda _: {"classes": ["one"]}, "needs at least two classes"),
    "a number": (lambda _: {"classes": 3}, "expected a list of names, a dictionary, or a file"),
    "no name": (lambda _: {"classes": ["a", object()]}, "class 2 is .*, which is no name"),
    "no list": (lambda _: {"classes": {"a": 5, "b": "a b"}}, "the prompts of class 'a' must be a list of strings"),
    "no text": (lambda _: {"classes": {"a": ["an a", 5], "b": "a"}}, "the prompts of class 'a' must be a list of str"),
    "no images": (lambda _: {"images": []}, "images: there are none"),
    "no kind": (lambda _: {"images": 3}, "int is none of those known"),
    "a name": (lambda _: {"images": [Image.new("L", (8, 8)), "x", 3]}, "images: number 1: .*No such file"),
    "few": (lambda place: {"images": write_photos(place / "few", range(3))}, "too few images .3.; at least 11"),
    "empty": (lambda place: {"images": write_photos(place / "none", ())}, "images .*none: "),
    "arrays": (lambda place: {"images": [np.zeros((8, 8, 3), np.uint8)] * 12 + [3]}, "images: number 12: int is no"),
    "too deep": (lambda place: {"test_images": wrong_labels(place, ["one"]) / "one"}, "none of the images has a label"),
    "no classes": (
        lambda place: {"test_images": wrong_labels(place, ["100APPLE", "2025-07"])},
        r"2 labels not among the classes \(100APPLE, 2025-07\)",
    ),
}


@pytest.mark.parametrize("again", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_in_python_changes_nothing(place, mistake, again):
    """Those of the command line: test_wrong_commands.py."""
    changes, message = MISTAKES[mistake]
    wrong, before = changes(place), checksums(place / "work")
    with pytest.raises(must.UserError, match=message) as error:
        adapt(place, **wrong, again=again)
    assert "\n" not in str(error.value)
    assert checksums(place / "work") == before and not list((place / "work").glob(".*"))
    with pytest.raises(must.UserError):
        adapt(place, **wrong, output=place / "new")
    assert not (place / "new").exists()


def test_what_is_deleted_is_made_anew_with_what_depends_on_it(place, ran):
    work = place / "work"
    table = labels(work)
    made_by = {
        "evaluate": ["report", "report/report.html"],
        "refine": ["labels/predictions.csv", "labels", "model", "model/model.safetensors"],
        "classifier": ["models", "classifier.safetensors"],
        "": ["classes.yaml"],
        "shard": ["shards", "shards/train-000000.tar"],
        " ".join(STAGES): ["adapt.json"],
    }
    for part, expected in ((part, stages.split()) for stages, parts in made_by.items() for part in parts):
        del ran[:]
        path = work / part
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        if part == "model":
            with pytest.raises(must.UserError, match="its model is not there; the same `must adapt` again makes it"):
                must.predict(model=work, images=place / "photos")
        adapt(place)
        assert ran in (expected, [*expected, "evaluate"]), part  # weights may differ in the last bits
        assert labels(work) == table, part
        assert path.exists() or part == "classes.yaml"
    assert (work / "before/model").is_dir(), "what nobody knows the origin of is not thrown away"


def kill_at(place, stage, when, changes):
    """In a process of its own: adapts, and is killed before or after the first run of a stage."""
    call = module.call

    def call_and_die(name, **values):
        result = call(name, **values) if (name, when) != (stage, "before") else None
        if name == stage:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    module.call = call_and_die
    adapt(place, **changes)


def run_killed(target, *arguments):
    process = CONTEXT.Process(target=target, args=arguments)
    process.start()
    process.join(600)
    assert process.exitcode == -signal.SIGKILL


@pytest.mark.slow
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("stage", STAGES)
def test_after_a_kill_in_any_stage_the_same_call_ends_well(place, tmp_path, stage, when):
    write_photos(place / "photos", range(PHOTOS, PHOTOS + MORE))
    before = checksums(place / "work")
    run_killed(kill_at, place, stage, when, OTHER)
    now = checksums(place / "work")
    assert {name: now.get(name) for name in before} == before, "WORK is as it was until the end"
    finish(place)
    new = tmp_path / "new"
    write_photos(new / "photos", range(PHOTOS + MORE))
    run_killed(kill_at, new, stage, when, OTHER)
    finish(new)


def finish(place):
    adapted = adapt(place, **OTHER)
    work = place / "work"
    assert adapted.classes == OTHER["classes"] and len(labels(work)) == PHOTOS + MORE
    assert adapted.metrics["model"]["weights_sha256"] == weights(work)
    assert not list(work.glob(".*"))
    assert set(labels(work).values()) <= set(OTHER["classes"])


def test_a_trained_model_gets_a_memory_of_new_photos_and_is_not_replaced(place, ran, caplog):
    caplog.set_level(logging.INFO)
    settings = {"preset": "digits", "epochs": 1, "batch_size": 20}
    adapt(place, train="yes", **settings)
    work = place / "work"
    provenance = json.loads((work / "model/model.json").read_text())["provenance"]
    assert ran[-3:] == ["train", "refine", "evaluate"] and provenance["config"]["epochs"] == 1
    del ran[:]
    adapt(place, train="yes", **settings)
    adapt(place, train="auto", **settings)
    adapt(place, train="no", **settings)
    assert ran == []
    write_photos(place / "photos", range(PHOTOS, PHOTOS + MORE))
    adapt(place, train="auto", **settings)
    assert ran == ["shard", "refine", "evaluate"] and "the model was trained on other images" in caplog.text
    kept = json.loads((work / "model/model.json").read_text())["provenance"]
    assert kept["config"] == provenance["config"] and kept["memory"]["images"] == PHOTOS + MORE
    del ran[:]
    adapt(place, train="yes", **settings)
    assert ran == ["train", "refine", "evaluate"]
    del ran[:]
    trained = weights(work)
    adapt(place, ["zero", "one", "two"], train="no")
    assert weights(work / "before") == trained
    adapt(place, ["zero", "one", "two", "three"], train="no")
    assert weights(work / "before") == trained, "what took hours is not dropped for what took none"


def test_answers_take_a_training_back_that_harms(place):
    """And the alpha that somebody gives stays."""
    quick = {"lr": 1.0, "ema_decay_init": 0.0, "ema_decay": 0.0}
    adapt(place, train="yes", preset="digits", epochs=1, batch_size=4, **quick)
    work, seen = place / "work", list[tuple[float, str]]()
    answer(work, place / "photos", {f"IMG_{n:04d}.png": label_of(n) for n in range(20)}, sampled="random")
    for given in ({}, {}, {"alpha": 0.0}, {"alpha": 1.0}, {}):
        provenance = json.loads((work / "model/model.json").read_text())["provenance"]
        seen.append((provenance["selection"]["alpha"], provenance["selection"]["by"]))
        must.refine(model=str(work), workers=0, device="cpu", **given)
    assert seen == [(1.0, "training"), (0.0, "answers"), (0.0, "answers"), (0.0, "given"), (1.0, "given")]
    assert json.loads((work / "model/model.json").read_text())["provenance"]["selection"]["by"] == "given"


def test_what_answers_of_another_folder_taught_stays(place, ran):
    work, photos = place / "work", place / "photos"
    answer(work, photos, {f"IMG_{n:04d}.png": "zero" for n in range(20)})
    (work / "review").rename(place / "answers")
    must.refine(model=str(work), answers=str(place / "answers"), workers=0, device="cpu")
    taught = weights(work)
    adapt(place)
    assert ran == ["evaluate"] and weights(work) == taught
    write_photos(photos, range(PHOTOS, PHOTOS + MORE))
    adapt(place)
    assert [labels(work)[f"IMG_{n:04d}.png"] for n in range(20)] == ["zero"] * 20
    (place / "answers").rename(work / "review")
    adapt(place)
    assert ran.count("refine") == 1, "they are the same answers"


def test_again_makes_all_anew(place, ran):
    first = weights(place / "work")
    adapt(place, again=True)
    assert ran == STAGES and weights(place / "work/before") == first


def test_a_report_that_was_made_beside_work_names_work_alone(monday, tmp_path, monkeypatch):
    place = shutil.copytree(monday, tmp_path / "R&D of Müller")
    images = wrong_labels(place, ["one", "two"])
    monkeypatch.chdir(place)
    adapt(place, test_images=images, again=True)
    work = place / "work"
    page = html.unescape((work / "report/report.html").read_text())
    commands = re.findall("<pre>(.*?)</pre>", page)
    assert commands[0] == "must review work" and commands[2] == "must export work"
    assert commands[-1].startswith("must evaluate --model work/model --baseline work/classifier.safetensors --shards ")
    for file in work_state.PATHS_IN:
        assert ".next-" not in (work / file).read_text(), file
    assert json.loads((work / "report/metrics.json").read_text())["data"]["shards"] == str(work / "test")
    monkeypatch.chdir(tmp_path.parent)
    adapt(place, test_images=images, again=True)
    page = html.unescape((work / "report/report.html").read_text())
    assert f"<pre>must review '{work.relative_to(tmp_path.parent)}'</pre>" in page


@pytest.mark.parametrize("kind", ["arrays", *OTHERS])
def test_small_collections_in_memory(place, tmp_path, kind, ran):
    pictures = [digit_parts()["validation"][number][0] for number in range(12)]
    files = sorted(write_photos(tmp_path / "files", range(12)).iterdir())

    def images():
        return {
            "arrays": [np.asarray(picture) for picture in pictures],
            "images": pictures,
            "generator": (picture for picture in pictures),
            "tensors": [torch.from_numpy(np.array(picture.convert("RGB"))).permute(2, 0, 1) for picture in pictures],
            "paths": files,
        }[kind]

    work = tmp_path / "work"
    assert len(labels(adapt(place, images=images(), output=work).output)) == 12
    del ran[:]
    before = checksums(work)
    adapt(place, images=images(), output=work)
    with pytest.raises(must.UserError, match=r"too few images \(10\)"):
        adapt(place, images=list(images())[:10], output=work)
    assert ran == [] and checksums(work) == before
    more = [*pictures, Image.new("L", (20, 20))] if kind != "paths" else [*files, place / "photos/IMG_0030.png"]
    assert len(labels(adapt(place, images=more, output=work).output)) == 13
    assert ran == ["shard", "refine", "evaluate"]


def test_folders_of_others_are_not_touched(place, tmp_path):
    """Photos and a model in folders with the names of parts."""
    project = tmp_path / "project"
    write_photos(project / "test", range(20))
    shutil.copytree(asset_folder(), project / "model")
    before = checksums(project)
    with pytest.raises(must.UserError, match=r"is in .*project, in a folder that must adapt writes"):
        adapt(place, model=project / "model", output=project)
    with pytest.raises(must.UserError, match=r"holds model, test, not of `must adapt`; choose a folder of its own"):
        adapt(place, output=project)
    assert checksums(project) == before


def test_one_call_at_a_time_writes_to_a_folder(place, monkeypatch):
    monkeypatch.setattr(module, "call", lambda name, **values: adapt(place))
    with pytest.raises(ValueError, match="is being written by another `must adapt`"):
        adapt(place, again=True)
