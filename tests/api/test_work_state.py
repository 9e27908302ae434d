"""The exchange of new parts of WORK for old ones, killed after each operation on files."""

import contextlib
import json
import shutil
from pathlib import Path

import pytest

from must.api import work_state


class Killed(BaseException):
    pass


def dies_after(operations, limit):
    """A wrapper of functions that raises after so many calls of all of them."""

    def wrap(function):
        def wrapped(*arguments, **options):
            result = function(*arguments, **options)
            operations.append(function)
            if len(operations) == limit:
                raise Killed
            return result

        return wrapped

    return wrap


@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize("number", range(1, 16))
def test_an_exchange_that_is_killed_anywhere_is_completed(tmp_path, monkeypatch, number, trained):
    """After every single operation on files. A trained model in before/ gives way to another trained one only."""
    parts, new = ["classifier.safetensors", "labels", "model", "shards", "adapt.json"], tmp_path / ".next-1"
    for folder, text in ((tmp_path, "old"), (new, "new"), (tmp_path / "before", "oldest")):
        for part in parts[1:4]:
            (folder / part).mkdir(parents=True)
            (folder / part / "file").write_text(text)
        (folder / parts[0]).write_text(text)
        (folder / parts[4]).write_text(text)
    (tmp_path / "onnx").write_text("old")
    origin = {"provenance": {"config": {"epochs": 1}}}
    (tmp_path / "before/model/model.json").write_text(json.dumps(origin if trained else {}))
    (tmp_path / "photo.png").write_text("the user's")
    (new / "old").mkdir()
    (new / "exchange.json").write_text(json.dumps({"old": [*parts, "onnx"], "new": parts}))
    with monkeypatch.context() as patch:
        wrap = dies_after(operations := [], number)
        patch.setattr(Path, "rename", wrap(Path.rename))
        patch.setattr(Path, "unlink", wrap(Path.unlink))
        patch.setattr(shutil, "rmtree", wrap(shutil.rmtree))
        with contextlib.suppress(Killed):
            work_state.exchange(tmp_path, new)
    assert len(operations) == min(number, 14 if trained else 15)
    if (new / "exchange.json").exists():
        work_state.exchange(tmp_path, new)
    shutil.rmtree(new, ignore_errors=True)  # as the end of the next call does
    kept = "oldest" if trained else "old"
    for folder, text in ((tmp_path, "new"), (tmp_path / "before", kept)):
        assert [(folder / part / "file").read_text() for part in parts[1:4]] == [text] * 3
        assert [(folder / parts[0]).read_text(), (folder / parts[4]).read_text()] == [text] * 2
    assert (tmp_path / "before/onnx").exists() and not (tmp_path / "onnx").exists()
    assert (tmp_path / "photo.png").read_text() == "the user's" and not new.exists()


@pytest.mark.parametrize("there", ["onnx", "labels"])
def test_what_other_stages_made_of_a_model_does_not_replace_what_is_in_before(tmp_path, there):
    (tmp_path / ".next-1/old").mkdir(parents=True)
    (tmp_path / ".next-1/exchange.json").write_text(json.dumps({"old": ["onnx"], "new": []}))
    (tmp_path / "onnx").write_text("outdated")
    (tmp_path / "before").mkdir()
    (tmp_path / "before" / there).write_text("before")
    work_state.exchange(tmp_path, tmp_path / ".next-1")
    assert (tmp_path / "before" / there).read_text() == "before" and (tmp_path / "before/onnx").exists()
    assert not (tmp_path / "onnx").exists() and not (tmp_path / ".next-1").exists()
