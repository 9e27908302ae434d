"""One week with one folder: `must.adapt` again, with more photos, other classes, answers, mistakes and kills."""

import html
import json
import logging
import os
import re
import shutil
import signal
import sys
from typing import Any

import numpy as np
import pyarrow
import pytest
import torch
from PIL import Image
from pyarrow import parquet

import must
from must.api import adapt as adapt_module
from must.api import work_state
from must.api.cli import main
from must.api.demo import CLASSES, find_assets
from must.api.inputs import ImageSource, fingerprint_source
from must.data.format import load_index
from tests import zoo
from tests.api.conftest import (
    MORE,
    PHOTOS,
    adapt,
    answer,
    checksums,
    digits_of_the_demo,
    label_of,
    labels,
    weights,
    write_photos,
)
from tests.common import printed, read_csv
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
    model = shutil.copytree(find_assets(), place.parent / "model")
    adapt(place, images=place.parent / "moved", model=model)
    (place / "work").rename(place.parent / "elsewhere")
    adapt(place, images=place.parent / "moved", output=place.parent / "elsewhere")
    assert ran == []
    (place.parent / "moved").rename(place / "photos")
    (place.parent / "elsewhere").rename(place / "work")
    for files in (before, after := checksums(place)):
        files.pop("work/adapt.json")  # holds the words of the last call
    assert after == before


def test_work_alone_brings_all_that_is_in_it_up_to_date(place, ran, monkeypatch, capsys):
    """With the words of the last call: new photos, answers, a report, an export as it was made; also where a call is
    stopped before the export."""
    monkeypatch.chdir(place)
    adapt(place, images="photos")
    main(["export", str(place / "work"), "--embeddings", "--limit", "11"])
    capsys.readouterr()
    main(["adapt", "work"])
    assert ran == [] and "nothing has changed" in capsys.readouterr().out
    monkeypatch.chdir(place.parent)
    write_photos(place / "photos", range(PHOTOS, PHOTOS + MORE))
    main(["refine", str(place / "work"), "--risk", "0.1", "--promise", "accepted"])
    ran.clear()
    answer(place / "work", place / "photos", {"IMG_0001.png": label_of(1)})

    def stop(name, **values):
        if name == "export":
            raise KeyboardInterrupt
        return call(name, **values)

    call = module.call
    with monkeypatch.context() as patch:
        patch.setattr(module, "call", stop)
        with pytest.raises(SystemExit, match="130"):
            main(["adapt", str(place / "work")])
    assert not (place / "work/onnx").exists() and ran == ["shard", "refine", "evaluate"]
    main(["adapt", str(place / "work")])
    asked = json.loads((place / "work/labels/refined.json").read_text())["config"]
    assert (asked["risk"], asked["promise"]) == (0.1, "accepted")
    assert ran[3:] == ["export"] and labels(place / "work")["IMG_0001.png"] == label_of(1)
    assert len(labels(place / "work")) == PHOTOS + MORE
    card = (place / "work/onnx/README.md").read_text()
    assert weights(place / "work") in card and "embedding" in card
    main(["adapt", str(place / "work")])
    assert ran[4:] == []
    (place / "photos").rename(place / "moved")
    with pytest.raises(SystemExit, match="2"):
        main(["adapt", str(place / "work")])
    assert "as in: must adapt PHOTOS --output" in capsys.readouterr().err
    main(["adapt", str(place / "moved"), "--output", str(place / "work")])
    assert "nothing has changed" in capsys.readouterr().out and ran[4:] == []


def test_what_a_call_was_given_is_taken_again_word_for_word(place, monkeypatch):
    """A folder that has the name of a word, settings one by one, and a list of classes that is too long for a path."""
    monkeypatch.chdir(place)
    (place / "no").mkdir()
    names = ",".join([*OTHER["classes"], *(f"thing {number}" for number in range(40))])
    main(
        [
            "adapt",
            "photos",
            "--classes",
            names,
            "--model",
            str(find_assets()),
            "--output",
            "o",
            "--train",
            "no",
            "--seed",
            "7",
        ]
    )
    main(["adapt", "o", "--settings", "workers=0,epochs=2"])
    words = json.loads((place / "o/adapt.json").read_text())["words"]
    assert (words["train"], words["classes"]) == ("no", names) and {"seed", "workers", "epochs"} <= words[
        "settings"
    ].keys()


def tars(folder, start):
    zoo.put(folder, {"week/a.tar": zoo.tar_of((f"{start}.png", b"1"), ("more.png", b"2"))})


def tables(folder, start):
    table = pyarrow.table({"image": [b"an image" * start, b"another"]})
    folder.mkdir(parents=True, exist_ok=True)
    parquet.write_table(table, folder / "a.parquet")


def named_in_a_table(folder, start):
    photos = sorted(write_photos(folder.parent / "photos", range(2)).iterdir())
    folder.mkdir(exist_ok=True)
    parquet.write_table(pyarrow.table({"file": list(map(str, photos))}), folder / "a.parquet")
    os.utime(folder / "a.parquet", (1, 1))
    os.utime(photos[0], (start, start))


@pytest.mark.parametrize(
    "fill, pattern",
    [(tars, ""), (tars, "/week/{a,b}.tar"), (tables, ""), (named_in_a_table, "")],
)
def test_what_is_new_or_gone_or_other_below_a_folder_is_seen(tmp_path, fill, pattern):
    """Of archives and tables: in a folder below, in place too; a moved folder is the same."""

    def look(name="source"):
        return fingerprint_source(ImageSource(f"{tmp_path / name}{pattern}"), "--images", "").key

    source = tmp_path / "source"
    fill(source, 1)
    (file,) = (path for path in source.rglob("*") if path.suffix in (".tar", ".parquet", ".arrow"))
    another = shutil.copy(file, file.with_stem("b"))
    first = look()
    fill(source, 2)
    second = look()
    source.rename(tmp_path / "moved")
    assert look("moved") == second != first
    (tmp_path / "moved").rename(source)
    if not pattern:
        another.unlink()
        assert look() not in (first, second)


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


def test_new_photos_are_appended_to_the_shards_and_no_other_is_packed_again(place, ran, monkeypatch, capsys):
    work, photos = place / "work", place / "photos"
    os.utime(photos / "IMG_0000.png", (1, 1))
    write_photos(photos, [PHOTOS])
    adapt(place)  # packs all, as the folder is not where it was
    shards = {path.name: path.stat().st_ino for path in (work / "shards").glob("*.tar")}

    def look(revision, pictures):
        index = load_index(str(work / "shards"))
        assert index.revision == revision and sum(shard.samples for shard in index.shards) == pictures
        assert list(labels(work)) == sorted(path.name for path in photos.iterdir()), "rows in the order of the folder"
        return {path.name: path.stat().st_ino for path in (work / "shards").glob("*.tar")}

    write_photos(photos, range(PHOTOS + 1, PHOTOS + MORE))
    (photos / "IMG_0000a.png").write_bytes((photos / f"IMG_{PHOTOS + 1:04d}.png").read_bytes())  # a copy of a new one

    def stop(name, **values):
        call(name, **values)
        raise KeyboardInterrupt

    call = module.call
    with monkeypatch.context() as patch:
        patch.setattr(module, "call", stop)
        with pytest.raises(KeyboardInterrupt):
            adapt(place)
    for letter in "bcdefg":
        (photos / f"IMG_0000{letter}.png").write_bytes(b"no image")
    assert len(labels(work)) == PHOTOS + 1
    with pytest.raises(must.UserError, match="max-rejected"):
        adapt(place)
    for letter in "bcdefg":
        (photos / f"IMG_0000{letter}.png").unlink()
    adapt(place)
    after = look(1, PHOTOS + MORE + 1)
    assert shards.items() < after.items(), "the same files"
    assert "/append" not in capsys.readouterr().err

    del ran[:]
    (photos / "IMG_0000c.png").write_bytes((photos / "IMG_0000.png").read_bytes())  # a copy of an old one gets a row
    adapt(place)
    assert ran[:2] == ["shard", "shard"] and not look(0, PHOTOS + MORE + 2).items() & after.items()
    write_photos(photos, [PHOTOS + MORE])
    (photos / "IMG_0000d.png").write_bytes((photos / "IMG_0000.png").read_bytes())  # also beside a new one
    (photos / "IMG_0000e.png").write_bytes(b"no image")
    adapt(place)
    (photos / "IMG_0000e.png").unlink()
    assert "IMG_0000e.png" not in labels(work)
    look(0, PHOTOS + MORE + 4)
    write_photos(photos, [PHOTOS + MORE + 1])
    (photos / "IMG_0000.png").write_bytes((photos / "IMG_0001.png").read_bytes())
    adapt(place)
    look(0, PHOTOS + MORE + 5)


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
    put(work, {"onnx/README.md": f"made of {answered}".encode()})
    write_photos(photos, range(PHOTOS, PHOTOS + MORE))
    (photos / "IMG_0039.png").unlink()
    shutil.copy(photos / "IMG_0000.png", photos / "IMG_9999.png")
    adapt(place)
    assert ran == ["shard", "refine", "evaluate", "export"] and f"{MORE + 1} new images, 1 gone" in caplog.text
    assert "  49 pictures, 1 copy" in caplog.messages
    assert len(labels(work)) == PHOTOS + MORE
    for file in work_state.PATHS_IN:
        assert ".next-" not in (work / file).read_text(), file
    assert all(labels(work)[f"IMG_{n:04d}.png"] == label_of(n) for n in numbers), "answers are the pictures'"
    assert weights(work / "before") == answered and not list(work.glob(".*")), "nothing hidden is left"
    assert (work / "before/onnx/README.md").exists() and weights(work) in (work / "onnx/README.md").read_text()

    del ran[:]
    before = {path.name for path in work.iterdir()}
    names = ["zero", "eleven", *CLASSES[2:], "letter"]  # one renamed, one new
    adapted = adapt(place, names)
    assert ran == ["classifier", "refine", "evaluate", "export"] and adapted.classes == names
    assert {path.name for path in work.iterdir()} == before
    known = [n for n in numbers if label_of(n) != "one"]
    assert all(labels(work)[f"IMG_{n:04d}.png"] == label_of(n) for n in known)
    assert (work / "models").is_dir() and adapted.predict(photos / "IMG_0000.png")[0].name in names


def test_labels_are_in_the_order_of_the_images(place, tmp_path, ran, caplog):
    caplog.set_level(logging.INFO)
    named = [row["image"] for row in read_csv(place / "work/labels/predictions.csv")]
    assert named == sorted(named) and len(named) == PHOTOS, "of a folder: of the names"
    photos = [place / "photos" / f"IMG_{n:04d}.png" for n in (30, 4, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2)]
    for images in (photos, photos[::-1]):
        adapted = adapt(place, images=images, output=tmp_path / "work")
        assert adapted.to_frame()["image"].tolist() == list(map(str, images))
    assert "names, order or copies of images changed" in caplog.text and ran[-3:] == ["shard", "refine", "evaluate"]


def test_photos_with_new_names_have_them_in_the_labels(place, ran, caplog):
    caplog.set_level(logging.INFO)
    work, table = place / "work", labels(place / "work")
    for path in (place / "photos").iterdir():
        path.rename(path.with_name(f"new-{path.name}"))
    adapt(place)
    assert ran[:2] == ["shard", "refine"] and "none gone; names, order or copies of images changed" in caplog.text
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
        "shard": ["shards", "shards/train-000000.tar", "shards/index.json"],
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


def test_the_same_again_imports_no_torch(place):
    """With the default of `train`, too, where there is no CUDA GPU."""
    values = {"images": place / "photos", "output": place / "work", "model": find_assets()}
    words = {name: str(value) for name, value in values.items()} | {"classes": list(CLASSES)}
    code = f"import sys, must; must.adapt(**{words}); print('torch' in sys.modules)"
    assert printed(sys.executable, "-c", code) == "False\n"


def test_what_answers_of_another_folder_taught_stays(place, ran):
    work, photos = place / "work", place / "photos"
    answer(work, photos, {f"IMG_{n:04d}.png": "zero" for n in range(20)})
    (work / "review").rename(place / "answers")
    main(["refine", str(work), "--answers", str(place / "answers"), "--workers", "0", "--device", "cpu"])
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
    pictures = [picture for picture, _ in digits_of_the_demo()[:12]]
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
    shutil.copytree(find_assets(), project / "model")
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
