"""`must sort`: every image in its class's folder, none lost, and all of it taken back."""

import json
import logging
import os

import pytest

import must
from must.api.cli import main
from must.base.files import JOURNAL_FILE
from must.deploy.labels import sort
from must.deploy.predict.writer import Prediction, open_writer


def photos(folder, names):
    """Files of different content each; returns their paths as text."""
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(f"picture {number}".encode())
    return [str(folder / name) for name in names]


def predictions(file, rows):
    """The file that `must predict` writes of rows (image, class, probability)."""
    with open_writer(str(file), 1) as write:
        for image, name, probability in rows:
            write(Prediction(image, [name], [probability]))
    return file


def tree(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def contents(folder):
    return sorted(data for name, data in tree(folder).items() if name != JOURNAL_FILE)


@pytest.mark.parametrize("how", ["link", "copy", "move"])
def test_no_two_files_become_one_and_all_comes_back(tmp_path, capsys, how):
    """Cameras call the first picture of every folder the same; the other's case does not help everywhere."""
    names = ["100/IMG_1.JPG", "101/IMG_1.JPG", "101/img_1.jpg", "a/101/IMG_1.JPG", "x.png"]
    files = photos(tmp_path / "photos", names)
    before, into = tree(tmp_path / "photos"), tmp_path / "sorted"
    csv = predictions(tmp_path / "p.csv", [(file, "cat" if "x" not in file else "dog", 0.9) for file in files])
    assert must.sort(labels=csv, into=into, how=how).placed == 5
    assert contents(into) == sorted(before.values())
    placed = [name for name in tree(into) if name.startswith("cat/")]
    assert len({name.casefold() for name in placed}) == 4 and "cat/IMG_1.JPG" in placed
    assert (tree(tmp_path / "photos") == before) is (how != "move")
    assert "takes it back" in capsys.readouterr().out
    state = tree(into)
    assert must.sort(labels=csv, into=into, how=how).placed == 5 and tree(into) == state, "a second run changes nothing"
    assert must.sort(undo=True, into=into).placed == 5
    assert not into.exists() and tree(tmp_path / "photos") == before


def test_a_program_silences_or_routes_what_is_printed(tmp_path, capsys, caplog, monkeypatch):
    into, logger = tmp_path / "sorted", logging.getLogger("must")
    csv = predictions(tmp_path / "p.csv", [(photos(tmp_path, ["x.png"])[0], "cat", 0.9)])
    try:
        logger.setLevel(logging.ERROR)
        must.sort(labels=csv, into=into)
    finally:
        logger.setLevel(logging.INFO)
    assert capsys.readouterr() == ("", "")
    monkeypatch.setattr(logger, "handlers", [])
    monkeypatch.setattr(logger, "propagate", True)
    must.sort(undo=True, into=into)
    assert capsys.readouterr().out == "" and [record.name for record in caplog.records] == ["must.deploy.labels.sort"]


def test_names_that_a_csv_spells_out_are_found(tmp_path):
    names = ["\x1b[31mred.png", os.fsdecode(b"caf\xe9\x9b.png"), r"as it is\x1b.png"]
    names += [f"{folder}/{80 * '猫'}" for folder in "ab"]
    files = photos(tmp_path / "photos", names)
    csv = predictions(tmp_path / "p.csv", [(file, "cat", 0.9) for file in files])
    assert b"\x1b" not in csv.read_bytes()
    assert must.sort(labels=csv, into=tmp_path / "sorted", how="copy").placed == 5


@pytest.mark.parametrize("how", ["copy", "move"])
def test_a_run_that_was_stopped_goes_on(tmp_path, monkeypatch, how):
    files = photos(tmp_path / "photos", [f"{n}/a.png" for n in range(4)])
    before = tree(tmp_path / "photos")
    csv = predictions(tmp_path / "p.csv", [(file, "cat", 0.9) for file in files])
    real, calls = sort.place_file, []

    def stopping(source, target, how):
        calls.append(target)
        if len(calls) == 3:
            raise KeyboardInterrupt  # the journal has its line, the file is not there
        real(source, target, how)

    monkeypatch.setattr(sort, "place_file", stopping)
    with pytest.raises(KeyboardInterrupt):
        must.sort(labels=csv, into=tmp_path / "sorted", how=how)
    monkeypatch.setattr(sort, "place_file", real)
    with (tmp_path / "sorted" / JOURNAL_FILE).open("a") as journal:
        journal.write('{"from": "/cut o\n')  # and a line that was not finished
    assert must.sort(labels=csv, into=tmp_path / "sorted", how=how).placed == 4
    assert contents(tmp_path / "sorted") == sorted(before.values())
    must.sort(undo=True, into=tmp_path / "sorted")
    assert tree(tmp_path / "photos") == before and not (tmp_path / "sorted").exists()


def test_what_is_not_ours_stays(tmp_path, capsys):
    files = photos(tmp_path / "photos", ["a.png", "b.png"])
    photos(tmp_path / "sorted" / "cat", ["a.png"])
    csv = predictions(tmp_path / "p.csv", [(file, "cat", 0.9) for file in files])
    must.sort(labels=csv, into=tmp_path / "sorted", how="copy")
    assert (tmp_path / "sorted/cat/a.png").read_bytes() == b"picture 0" and len(contents(tmp_path / "sorted")) == 3
    (tmp_path / "sorted/cat/b.png").write_bytes(b"painted over")
    assert must.sort(undo=True, into=tmp_path / "sorted").missing == 1
    assert "b.png: stays" in capsys.readouterr().out
    assert contents(tmp_path / "sorted") == [b"painted over", b"picture 0"]


@pytest.mark.parametrize(
    "lines, message",
    [
        ("{}", "line 1 is damaged"),
        ('HEAD\n{"from": "/a"}', "line 2 is damaged"),
        ('HEAD\n{"from": "FOLDER/taken", "to": "../mine.png", "image": "a"}', "'../mine.png' leads out of its folder"),
        ('HEAD\n{"from": "FOLDER/taken", "to": "FOLDER/mine.png", "image": "a"}', "leads out of its folder"),
    ],
)
def test_a_damaged_journal_is_one_line_and_takes_nothing_from_elsewhere(tmp_path, lines, message):
    photos(tmp_path, ["mine.png", "sorted/a.png"])
    csv = predictions(tmp_path / "p.csv", [(str(tmp_path / "mine.png"), "cat", 0.9)])
    lines = lines.replace("HEAD", '{"from": "", "labels": "", "how": "move"}').replace("FOLDER", str(tmp_path))
    (tmp_path / "sorted" / JOURNAL_FILE).write_text(lines)
    for arguments in ({"undo": True}, {"labels": csv}):
        with pytest.raises(ValueError, match=message):
            must.sort(into=tmp_path / "sorted", **arguments)
    assert (tmp_path / "mine.png").is_file() and not (tmp_path / "taken").exists()


def test_class_names_become_folders_inside(tmp_path):
    names = ["../up", "a/b", "a:b", "..", "=1+1", "none of these", "CAT", "cat", "x" * 300, "日本"]
    files = photos(tmp_path / "photos", [f"{n}.png" for n in range(len(names) + 1)])
    rows = [(file, name, 0.9) for file, name in zip(files, names, strict=False)] + [(files[-1], "cat", 0.1)]
    must.sort(labels=predictions(tmp_path / "p.csv", rows), into=tmp_path / "in" / "sorted", abstain=0.5)
    folders = [path.name for path in (tmp_path / "in" / "sorted").iterdir() if path.is_dir()]
    assert len(folders) == len({name.casefold() for name in folders}) == len(names) + 1
    assert {"_", ".._up".strip("."), "=1+1", "none of these", "none of these (2)", "cat (2)", "日本"} <= {*folders}
    assert [path.name for path in (tmp_path / "in").iterdir()] == ["sorted"]
    assert os.path.lexists(tmp_path / "in/sorted/none of these (2)/10.png")


def test_names_below_a_root_and_bytes_that_are_no_text(tmp_path):
    names = ["sub/a.png", os.fsdecode(b"\xff.png")]
    photos(tmp_path / "photos", names)
    rows = [(name, "cat", 0.9) for name in (*names, "gone.png")]
    csv = predictions(tmp_path / "p.csv", rows)
    found = must.sort(labels=csv, into=tmp_path / "sorted", root=tmp_path / "photos")
    assert (found.placed, found.missing) == (2, 1)
    assert contents(tmp_path / "sorted") == [b"picture 0", b"picture 1"]


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["nowhere.csv", "--into", "x"], "no such file"),
        (["--into", "x"], "no file of labels given"),
        (["p.csv", "--into", "x"], "none of its 1 images is there, 'gone.png' for one; --root says"),
        (["p.csv", "--into", "p.csv"], "is a file"),
        (["--undo", "--into", "x"], "nothing was sorted into it"),
        (["p.csv", "--undo", "--into", "x"], "leave the file of labels out"),
        (["bad.csv", "--into", "x"], "the first line must name a column of images"),
    ],
)
def test_the_users_mistakes_are_one_line_and_leave_nothing(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    predictions(tmp_path / "p.csv", [("gone.png", "cat", 0.9)])
    (tmp_path / "bad.csv").write_text("a;b\n1;2\n")
    with pytest.raises(SystemExit) as end:
        main(["sort", *arguments])
    (line,) = capsys.readouterr().err.splitlines()
    assert end.value.code == 2 and message in line, line
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad.csv", "p.csv"]


def test_other_labels_have_to_wait_until_the_first_are_taken_back(tmp_path):
    (file,) = photos(tmp_path / "photos", ["a.png"])
    first, second = (predictions(tmp_path / f"{name}.csv", [(file, name, 0.9)]) for name in ("cat", "dog"))
    must.sort(labels=first, into=tmp_path / "sorted")
    with pytest.raises(ValueError, match="from other labels or in another way; take them back first"):
        must.sort(labels=second, into=tmp_path / "sorted")
    assert json.loads((tmp_path / "sorted" / JOURNAL_FILE).read_text().splitlines()[1])["to"] == "cat/a.png"
