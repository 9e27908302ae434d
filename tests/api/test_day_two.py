"""One week with one folder: `must.adapt` again, with more photos, other classes, answers, mistakes and kills."""

import json
import logging
import os
import shutil
import sys
from typing import Any

import numpy as np
import pyarrow
import pytest
from PIL import Image
from pyarrow import parquet
from safetensors.numpy import load_file, save_file

import must
from must.api import adapt as adapt_module
from must.api.cli import main
from must.api.demo import CLASSES, find_assets
from must.api.inputs import ImageSource, fingerprint_source
from must.config.work import is_outdated
from must.data.format import load_index
from must.model.classifier import DEFAULT_TEMPLATE
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
)  # fmt: skip
from tests.common import printed, read_csv

module: Any = adapt_module
CLASSIFIER, SHARD, MODEL = ["classifier"], ["shard"], ["refine", "evaluate"]
STAGES = [*CLASSIFIER, *SHARD, *MODEL]
OTHER = {"classes": ["zero", "one", "two", "other"]}


def move(place):
    (place / "photos").rename(place / "moved")
    (place / "work").rename(place / "elsewhere")
    return {"images": place / "moved", "output": place / "elsewhere"}


def rename(place):
    for path in (place / "photos").iterdir():
        path.rename(path.with_name(f"new-{path.name}"))


def add_and_remove(place):
    write_photos(place / "photos", range(PHOTOS, PHOTOS + MORE))
    (place / "photos/IMG_0039.png").unlink()
    shutil.copy(place / "photos/IMG_0000.png", place / "photos/IMG_9999.png")


def change_tower(place):
    """Another CLIP, of the same shape."""
    folder = shutil.copytree(find_assets(), place / "another")
    tensors = load_file(folder / "open_clip_model.safetensors")
    name = next(name for name in tensors if name.startswith("visual.") and name.endswith("mlp.c_fc.weight"))
    save_file(tensors | {name: tensors[name] * 1.01}, folder / "open_clip_model.safetensors")
    return {"model": folder}


def make_table(place):
    """Labelled photos that are among the photos."""
    rows = [f"{place}/photos/IMG_{n:04d}.png,{label_of(n)}\n" for n in range(30)]
    (place / "labels.csv").write_text("image,class\n" + "".join(rows))
    return {"test_images": place / "labels.csv"}


def touch(place):
    for path in (place / "photos").iterdir():
        os.utime(path, (1, 1))


def delete(part):
    def act(place):
        path = place / "work" / part
        shutil.rmtree(path) if path.is_dir() else path.unlink()

    return act


def give_answers(place):
    answer(place / "work", place / "photos", {f"IMG_{n:04d}.png": label_of(n) for n in range(20)})


STATES = {  # what is done to the place, which may change the call: what runs, how many labels, what is said
    "the same": (lambda place: None, [], PHOTOS, "nothing has changed"),
    "written as text": (lambda place: {"images": f"{place}/photos/"}, [], PHOTOS, "nothing has changed"),
    "moved": (move, [], PHOTOS, "nothing has changed"),
    "a copy of the model": (
        lambda place: {"model": shutil.copytree(find_assets(), place / "model")}, [], PHOTOS, "nothing has changed",
    ),
    "without times": (touch, SHARD, PHOTOS, "no image is new, and none gone"),
    "more photos": (add_and_remove, [*SHARD, *MODEL], PHOTOS + MORE, f"{MORE + 1} new images, 1 gone"),
    "other names of photos": (rename, [*SHARD, *MODEL], PHOTOS, "none gone; names, order or copies of images changed"),
    "other classes": (lambda _: OTHER, [*CLASSIFIER, *MODEL], PHOTOS, ""),
    "other names": (
        lambda _: {"classes": {f"a {name}": DEFAULT_TEMPLATE.format(name) for name in CLASSES}},
        [*CLASSIFIER, *MODEL], PHOTOS, "",
    ),
    "another CLIP": (change_tower, [*CLASSIFIER, *MODEL], PHOTOS, ""),
    "answers": (give_answers, MODEL, PHOTOS, "20 answers among them"),
    "labelled photos": (make_table, [*SHARD, "evaluate"], PHOTOS, ""),
    "again": (lambda _: {"again": True}, STAGES, PHOTOS, ""),
    "no report": (delete("report"), ["evaluate"], PHOTOS, ""),
    "no page": (delete("report/report.html"), ["evaluate"], PHOTOS, ""),
    "no labels": (delete("labels"), MODEL, PHOTOS, ""),
    "no table": (delete("labels/predictions.csv"), MODEL, PHOTOS, ""),
    "no model": (delete("model"), MODEL, PHOTOS, ""),
    "no weights": (delete("model/model.safetensors"), MODEL, PHOTOS, ""),
    "no classifier": (delete("classifier.safetensors"), CLASSIFIER, PHOTOS, ""),
    "no clip": (delete("models"), CLASSIFIER, PHOTOS, ""),
    "no shards": (delete("shards"), [*SHARD, *MODEL], PHOTOS, ""),
    "no tar": (delete("shards/train-000000.tar"), [*SHARD, *MODEL], PHOTOS, "train-000000.tar is missing"),
    "no index": (delete("shards/index.json"), [*SHARD, *MODEL], PHOTOS, "index.json is missing"),
    "no record": (delete("adapt.json"), [], PHOTOS, "nothing has changed"),
}  # fmt: skip


@pytest.mark.parametrize("state", STATES)
def test_what_is_not_up_to_date_is_made_and_nothing_else(place, ran, state, caplog):
    """And the same call again makes nothing."""
    caplog.set_level(logging.INFO)
    act, expected, count, said = STATES[state]
    changes = act(place) or {}
    work = changes.get("output", place / "work")
    adapted = adapt(place, **changes)
    assert ran == expected and said in caplog.text
    assert len(labels(work)) == count and adapted.to_frame()["zero_shot"].isin(adapted.classes).all()
    assert adapted.metrics["model"]["weights_sha256"] == weights(work)
    assert not is_outdated(work / "report/report.html") and not list(work.glob(".*"))
    assert len(list((work / "features").iterdir())) == 1, "no features stay of a tower that was replaced"
    text = "".join(path.read_text() for path in (work / "report/report.html", work / "model/model.json"))
    assert ".next" not in text + (work / "labels/refined.json").read_text()
    before = checksums(place)
    adapt(place, **changes | {"again": False})
    assert ran == expected and checksums(place) == before


def test_a_report_of_another_model_says_so_until_the_same_command_makes_it_again(place, ran):
    page = place / "work/report/report.html"
    give_answers(place)
    main(["refine", str(place / "work"), "--workers", "0", "--device", "cpu"])
    first = page.read_text().split("<body>\n")[1].splitlines()[0]
    assert "This report is of another model than the one beside it" in first and "must adapt work" in first
    adapt(place)
    assert ran == ["evaluate"] and not is_outdated(page)


def test_a_call_says_in_few_lines_what_a_user_asks(place, capsys):
    """The steps' own lines are in the log, and on the terminal with --verbose; a call that makes nothing keeps it."""
    write_photos(place / "photos", range(PHOTOS, PHOTOS + MORE))
    given = ["adapt", str(place / "photos"), "--classes", ",".join(CLASSES), "--model", str(find_assets())]
    given += ["--output", str(place / "work"), "--train", "no", "--workers", "0", "--device", "cpu"]
    main([*given, "--again"])
    said = "".join(capsys.readouterr()).splitlines()
    log = (place / "work/adapt.log").read_text()
    assert len(said) <= 15 and "50 pictures" in said and any(line.startswith("labels of 50 pictures") for line in said)
    assert "64 dimensions" not in "".join(said) and "64 dimensions" in log
    assert any("not known yet: name about fifty pictures" in line for line in said) and "collapse" not in "".join(said)
    main(given)
    assert (place / "work/adapt.log").read_text() == log
    main([*given, "--again", "--verbose"])
    assert "64 dimensions" in capsys.readouterr().out


@pytest.mark.slow
def test_work_alone_brings_all_that_is_in_it_up_to_date(place, ran, monkeypatch, capsys):
    """With the words of the last call; and it says which export is of the model before."""
    monkeypatch.chdir(place)
    adapt(place, images="photos")
    main(["export", str(place / "work"), "--limit", "11"])
    monkeypatch.chdir(place.parent)
    write_photos(place / "photos", range(PHOTOS, PHOTOS + MORE))
    main(["refine", str(place / "work"), "--risk", "0.1", "--promise", "accepted"])
    answer(place / "work", place / "photos", {"IMG_0001.png": label_of(1)})
    capsys.readouterr()
    main(["adapt", str(place / "work")])
    asked = json.loads((place / "work/labels/refined.json").read_text())["config"]
    assert (asked["risk"], asked["promise"]) == (0.1, "accepted") and ran == [*SHARD, *MODEL]
    assert len(labels(place / "work")) == PHOTOS + MORE and labels(place / "work")["IMG_0001.png"] == label_of(1)
    assert "onnx: of the model before; must export" in capsys.readouterr().out
    (place / "photos").rename(place / "moved")
    with pytest.raises(SystemExit, match="2"):
        main(["adapt", str(place / "work")])
    assert "as in: must adapt PHOTOS --output" in capsys.readouterr().err
    main(["adapt", str(place / "moved"), "--output", str(place / "work")])
    assert ran == [*SHARD, *MODEL]


def test_what_a_call_was_given_is_taken_again_word_for_word(place, monkeypatch):
    """A folder that has the name of a word, settings one by one, and a list of classes that is too long for a path."""
    monkeypatch.chdir(place)
    (place / "no").mkdir()
    names = ",".join([*OTHER["classes"], *(f"thing {number}" for number in range(40))])
    given = ["--classes", names, "--model", str(find_assets()), "--output", "o", "--train", "no", "--seed", "7"]
    main(["adapt", "photos", *given])
    main(["adapt", "o", "--settings", "workers=0,epochs=2"])
    words = json.loads((place / "o/adapt.json").read_text())["words"]
    assert (words["train"], words["classes"]) == ("no", names)
    assert {"seed", "workers", "epochs"} <= words["settings"].keys()


def test_answers_go_with_a_class_that_has_another_name(place, capsys):
    """Two may become one; without --rename or --drop nothing is changed."""
    work, numbers = place / "work", range(20)
    answer(work, place / "photos", {f"IMG_{n:04d}.png": label_of(n) for n in numbers}, "random")
    adapt(place)
    before, names = checksums(work), ["Röcke" if name in ("one", "two") else name for name in CLASSES if name != "two"]
    with pytest.raises(must.UserError, match=r"answers would be lost.* of 'one'.*--rename .*=NEW; else: .* --drop"):
        adapt(place, names)
    assert checksums(work) == before
    with pytest.raises(must.UserError, match="'cow' is not among the classes"):
        adapt(place, names, rename={"one": "cow"})
    main(["adapt", str(work), "--rename", "one=Röcke,two=Röcke"])
    expected = {f"IMG_{n:04d}.png": "Röcke" if label_of(n) in ("one", "two") else label_of(n) for n in numbers}
    assert {name: labels(work)[name] for name in expected} == expected
    assert "Röcke" in (work / "review/answers.jsonl").read_text(encoding="utf-8")
    assert json.loads((work / "labels/refined.json").read_text())["answers"] == 20
    adapt(place, [name for name in names if name != "Röcke"], drop=True)
    adapt(place, [name for name in names if name != "Röcke"])


def test_labelled_images_are_measured_and_no_longer_where_they_are_withdrawn(place, ran):
    work, before = place / "work", weights(place / "work")
    table = make_table(place)["test_images"]
    assert adapt(place, test_images=table).metrics["labelled"] == 30
    corrected = (label_of(0) == "one" and "two") or "one"
    table.write_text(table.read_text().replace(f"IMG_0000.png,{label_of(0)}", f"IMG_0000.png,{corrected}"))
    adapt(place, test_images=table)
    assert ran == ["shard", "evaluate"] * 2, "a corrected label is measured"
    known, _ = checksums(work), ran.clear()
    with pytest.raises(must.UserError, match=r"test_images .*: \d labels? not among the classes"):
        adapt(place, [name for name in CLASSES if name != "one"], test_images=table)
    assert ran == CLASSIFIER and checksums(work) == known, "before the pass, and nothing is changed"
    assert adapt(place).metrics["labelled"] == 0 and weights(work) == before
    assert not (work / "test").exists(), "nothing measures with labels that were withdrawn"


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

    call = module.run
    with monkeypatch.context() as patch:
        patch.setattr(module, "run", stop)
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


def test_names_that_look_like_numbers_or_formulas_stay_as_they_are(place, tmp_path):
    """Also as an array."""
    names = ["00", "007", "-1", "'q", *(f"0{number}" for number in range(1, 7))]
    frame = adapt(place, np.array(names), output=tmp_path / "work").to_frame()
    assert {*frame["class"], *frame["zero_shot"]} <= {*names} and frame["probability"].dtype == float


def test_labels_are_in_the_order_of_the_images(place, tmp_path, ran, caplog):
    caplog.set_level(logging.INFO)
    named = [row["image"] for row in read_csv(place / "work/labels/predictions.csv")]
    assert named == sorted(named) and len(named) == PHOTOS, "of a folder: of the names"
    photos = [place / "photos" / f"IMG_{n:04d}.png" for n in (30, 4, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2)]
    for images in (photos, photos[::-1]):
        adapted = adapt(place, images=images, output=tmp_path / "work")
        assert adapted.to_frame()["image"].tolist() == list(map(str, images))
    assert "names, order or copies of images changed" in caplog.text and ran[-3:] == ["shard", "refine", "evaluate"]


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
    "a typing error": (lambda _: {"trian": "no"}, "trian: unknown; did you mean train"),
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


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_in_python_changes_nothing(place, mistake):
    """Those of the command line: test_wrong_commands.py."""
    changes, message = MISTAKES[mistake]
    wrong, before = changes(place), checksums(place / "work")
    with pytest.raises(must.UserError, match=message) as error:
        adapt(place, **wrong, again=mistake == "no classes")
    assert "\n" not in str(error.value)
    assert checksums(place / "work") == before and not list((place / "work").glob(".*"))
    with pytest.raises(must.UserError):
        adapt(place, **wrong, output=place / "new")
    assert not (place / "new").exists()


def test_a_trained_model_stays_until_its_successor_is_there(place, ran, caplog):
    caplog.set_level(logging.INFO)
    settings = {"preset": "digits", "epochs": 1, "batch_size": 20}
    adapt(place, train="yes", **settings)
    work = place / "work"
    provenance = json.loads((work / "model/model.json").read_text())["provenance"]
    assert ran == ["train", *MODEL] and provenance["config"]["epochs"] == 1 and not (work / "checkpoints").exists()
    del ran[:]
    for train in ("yes", "auto", "no"):
        adapt(place, train=train, **settings)
    assert ran == []
    write_photos(place / "photos", range(PHOTOS, PHOTOS + MORE))
    adapt(place, train="auto", **settings)
    assert ran == [*SHARD, *MODEL] and "the model was trained on other images" in caplog.text
    kept = json.loads((work / "model/model.json").read_text())["provenance"]
    assert kept["config"] == provenance["config"] and kept["memory"]["images"] == PHOTOS + MORE
    before, _ = checksums(work), ran.clear()
    with pytest.raises(must.UserError, match=r"its model is trained, .* --train yes"):
        adapt(place, ["zero", "one", "two"])
    assert checksums(work) == before and ran == CLASSIFIER
    del ran[:]

    def look(name, **values):
        if name == "train":
            assert weights(work) == trained, "until its successor is there"
        return run(name, **values)

    run, trained = module.run, weights(work)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "run", look)
        adapted = adapt(place, ["zero", "one", "two"], train="yes", **settings)
    assert ran == [*CLASSIFIER, "train", *MODEL] and adapted.classes == ["zero", "one", "two"]
    assert weights(work) != trained
    assert len(list((work / "features").iterdir())) == 2, "of CLIP and of the new model; those of the old one are gone"


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


@pytest.mark.parametrize("kind", ["arrays", pytest.param("paths", marks=pytest.mark.slow)])
def test_small_collections_in_memory(place, tmp_path, kind, ran):
    pictures = [picture for picture, _ in digits_of_the_demo()[:12]]
    files = sorted(write_photos(tmp_path / "files", range(12)).iterdir())

    images = {"arrays": [np.asarray(picture) for picture in pictures], "paths": files}[kind]
    work = tmp_path / "work"
    assert len(labels(adapt(place, images=images, output=work).output)) == 12
    del ran[:]
    before = checksums(work)
    adapt(place, images=images, output=work)
    with pytest.raises(must.UserError, match=r"too few images \(10\)"):
        adapt(place, images=images[:10], output=work)
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
    monkeypatch.setattr(module, "run", lambda name, **values: adapt(place))
    with pytest.raises(ValueError, match="is being written by another `must adapt`"):
        adapt(place, again=True)
