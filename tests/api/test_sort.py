"""`must sort`: the labelled images in a folder for each class."""

import json
import os
import shutil

import pytest

from must.api.cli import main
from must.api.demo import CLASSES
from must.api.sort import make_folder_name, make_path
from tests.api.conftest import PROMPTS, adapt, labels, write_photos
from tests.common import ended
from tests.zoo import put


def test_images_are_linked_below_their_class_and_copied_where_the_photos_are_gone(place, tmp_path):
    adapt(place)  # the fixture's folder was made elsewhere
    work, photos, named = place / "work", place / "photos", labels(place / "work")
    main(["sort", str(work)])
    found = {path.name: path for path in (work / "sorted").glob("*/*")}
    assert {name: path.parent.name for name, path in found.items()} == named
    assert all(path.is_symlink() and path.resolve() == photos / name for name, path in found.items())
    main(["sort", str(work), "--copy", "--output", str(tmp_path / "copies")])
    bytes_of = {path.name: path.read_bytes() for path in photos.iterdir()}
    shutil.move(photos, tmp_path / "moved")
    main(["sort", str(work), "--output", str(tmp_path / "packed")])
    for made in ("copies", "packed"):
        files = {path.name: path for path in (tmp_path / made).glob("*/*")}
        assert not any(path.is_symlink() for path in files.values())
        assert {name: path.read_bytes() for name, path in files.items()} == bytes_of
    shutil.move(tmp_path / "moved", photos)


def test_a_photo_that_was_replaced_is_not_taken_for_the_labelled_one(place, capfd):
    """And nothing is put among the photographs, which the next `must adapt` would read."""
    adapt(place)
    work, photos = place / "work", place / "photos"
    named, first, other = labels(work), photos / "IMG_0000.png", photos / "IMG_0001.png"
    before = first.read_bytes()
    first.write_bytes(other.read_bytes())
    words = ["sort", str(work), "--output", str(photos / "sorted")]
    assert "is among the photographs" in ended(capfd, 2, main, words) and not (photos / "sorted").exists()
    main(["sort", str(work)])
    assert (work / "sorted" / named[first.name] / first.name).read_bytes() == before


def test_nothing_is_put_beside_what_is_there_and_a_killed_call_leaves_no_half(place, tmp_path, capfd, monkeypatch):
    (tmp_path / "full").mkdir()
    (tmp_path / "full/mine.txt").touch()
    words = ["sort", str(place / "work"), "--output", str(tmp_path / "full")]
    assert "is there already; delete it, or choose another one" in ended(capfd, 2, main, words)
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["mine.txt"]

    def interrupt(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("pathlib.Path.symlink_to", interrupt)
        with pytest.raises(SystemExit):
            main([*words[:-1], str(tmp_path / "new")])
    assert not (tmp_path / "new").exists()
    main([*words[:-1], str(tmp_path / "new")])
    assert sum(path.is_symlink() for path in (tmp_path / "new").rglob("*")) == len(labels(place / "work"))


def test_odd_names_and_names_that_meet(tmp_path, capsys):
    """Control characters, bytes that are no text, two classes with one folder, a list of files, a folder beside."""
    made = sorted(write_photos(tmp_path / "made", range(3)).iterdir())
    odd = [os.fsdecode(name) for name in (b"ctl\x1b1.png", b"lat\xe9in.png", b"plain.png")]
    put(tmp_path / "photos", {name: source.read_bytes() for name, source in zip(odd, made, strict=True)})
    write_photos(tmp_path / "photos", range(3, 40))
    classes = dict(zip(["a/b", "a-b", *CLASSES[2:]], PROMPTS.values(), strict=True))
    adapt(tmp_path, classes=classes, images=sorted((tmp_path / "photos").iterdir()))
    put(tmp_path, {"out.part/notes.txt": b"mine"})
    main(["sort", str(tmp_path / "work"), "--output", str(tmp_path / "out")])
    found = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert {path.name for path in found} == {path.name for path in (tmp_path / "photos").iterdir()}
    assert {"a-b", "a-b-2"} <= {path.name for path in (tmp_path / "out").iterdir()}
    assert (tmp_path / "out.part/notes.txt").read_bytes() == b"mine"


def test_names_cannot_lead_out_of_the_folder(place, tmp_path):
    for label in ("../..", "/etc", "a/b", ".", "..", ""):
        assert "/" not in make_folder_name(label) and make_folder_name(label) not in ("", ".", "..")
    for name in ("../../x.png", "/etc/passwd", "a/./b//c.png", ".."):
        assert not {*make_path(name).split("/")} & {"", ".", ".."}
    outside = tmp_path / "outside.png"
    outside.write_bytes(b"secret")
    record = json.loads((place / "work/adapt.json").read_text())
    copy, linked = shutil.copytree(place / "work", tmp_path / "work"), shutil.copytree(place / "photos", tmp_path / "p")
    first = min(linked.iterdir())
    first.unlink()
    first.symlink_to(outside)
    record["words"]["images"] = str(linked)
    (copy / "adapt.json").write_text(json.dumps(record))
    main(["sort", str(copy), "--copy"])
    (found,) = (copy / "sorted").glob(f"*/{first.name}")
    assert found.read_bytes() == (place / "photos" / first.name).read_bytes(), "of the shards, not of the link"
