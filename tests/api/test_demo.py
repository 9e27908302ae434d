"""`must demo` writes into a folder of its own, and leaves alone what is somebody else's."""

import pytest

import must


def test_a_users_folder_is_left_alone(tmp_path):
    for name in ("classes.yaml", "photo.jpg"):
        folder = tmp_path / name.partition(".")[0]
        folder.mkdir()
        (folder / name).write_text("mine")
        with pytest.raises(ValueError, match=r"holds files of yours.*give a new folder"):
            must.demo(output=folder)
        assert [path.name for path in folder.iterdir()] == [name] and (folder / name).read_text() == "mine"
    with pytest.raises(ValueError, match="is a file"):
        must.demo(output=tmp_path / "photo" / "photo.jpg")


def test_a_second_run_completes_its_own_folder_and_keeps_what_was_changed(tmp_path, capsys):
    made = must.demo(output=tmp_path / "demo")
    (tmp_path / "demo" / "classes.yaml").write_text("classes: [mine, yours]\n")
    missing = tmp_path / "demo" / "images" / "unlabeled" / "00000.png"
    missing.unlink()
    capsys.readouterr()
    assert must.demo(output=tmp_path / "demo") == made and missing.exists()
    assert (tmp_path / "demo" / "classes.yaml").read_text() == "classes: [mine, yours]\n"
    assert "classes.yaml: is kept, because it was changed" in capsys.readouterr().out
