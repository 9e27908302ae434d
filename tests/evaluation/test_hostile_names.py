"""Images whose names are no UTF-8, formulas or escapes: through sharding and evaluation, to the end."""

import csv
import io
import json
import os
import shutil
from unittest.mock import Mock

import pytest

from must.base.errors import UserError
from must.config import RefineConfig, ShardConfig
from must.data.format import verify
from must.data.shards.build import shard, show_index
from must.evaluation.evaluate import evaluate
from must.evaluation.result import make_text_table
from must.memory.refine import refine
from tests.evaluation.digits import evaluation

NAMES = [
    b"caf\xe9.png", b"=cmd|' calc'!A0.png", b"\x1b]0;pwned\x07\x1b[2J.png", b"'quoted.png", b"a\r=1.png", b"plain.png"
]  # fmt: skip


@pytest.fixture(scope="module")
def hostile(digits, tmp_path_factory):
    """Shards of the test images (label "zero" only), some under other names; beside them files with odd endings."""
    root = tmp_path_factory.mktemp("hostile")
    folder = root / "images" / "zero"
    folder.mkdir(parents=True)
    files = sorted((digits.images / "test" / "zero").glob("*.png"))
    for number, path in enumerate(files):
        name = NAMES[number] if number < len(NAMES) else path.name.encode()
        shutil.copy(path, os.path.join(os.fsencode(folder), name))  # noqa: PTH118, a path of bytes
    (folder / "notes.\x1b[31m").write_text("no image")
    (folder / "broken\x1b[31m.png").write_bytes(files[0].read_bytes()[:80])
    values = {"labels": "folder", "split": {"test": 1}, "max_rejected": 0.9, "workers": 1}
    shard(ShardConfig(source=str(root / "images"), output=str(root / "shards"), **values))
    return str(root / "shards")


@pytest.fixture(scope="module")
def results(digits, hostile, tmp_path_factory):
    output = tmp_path_factory.mktemp("results")
    return evaluate(evaluation(digits, output, shards=hostile)), output


def test_everything_is_written_and_is_utf_8(results):
    metrics, output = results
    assert json.loads((output / "metrics.json").read_bytes()) == metrics.to_dict()
    rows = list(csv.DictReader(io.StringIO((output / "predictions.csv").read_bytes().decode(), newline="")))
    sources = {row["source"] for row in rows}
    assert len(rows) == metrics.images and {r"zero/caf\udce9.png", "zero/plain.png", "zero/a\r=1.png"} <= sources
    assert r"zero/\x1b]0;pwned\x07\x1b[2J.png" in sources
    assert not any(b"\x1b" in path.read_bytes() for path in output.iterdir())
    page = (output / "report.html").read_bytes().decode()
    assert "\x1b" not in page and not any(0xD800 <= ord(character) < 0xE000 for character in page)


def test_the_report_finds_the_pictures_of_the_labels(digits, hostile, tmp_path):
    """The table of labels has names in another form than the shards."""
    places = {"model": str(tmp_path / "model"), "output": str(tmp_path / "labels")}
    refine(RefineConfig(shards=hostile, split="test", classifier=digits.classifier, workers=0, device="cpu", **places))
    refined = {"model": places["model"], "refined": places["output"]}
    metrics = evaluate(evaluation(digits, tmp_path, shards=hostile, **refined))
    page = (tmp_path / "report.html").read_text()
    assert page[: page.index("For engineers")].count("<img") == metrics.images == 13


def test_nothing_on_the_terminal_is_raw(digits, results, tmp_path, capfd, monkeypatch):
    """A source, a label, a reason and a shard's fault that would colour the terminal, or clear it."""
    label, fault = "zero\x1b[31m", Mock(side_effect=UserError("fault\x1b[2J"))
    folder, file = tmp_path / "photos\x1b[2J" / label, next((digits.images / "test" / "zero").glob("*.png"))
    folder.mkdir(parents=True)
    shutil.copy(file, folder / "a.png")
    (folder / "broken.png").write_bytes(file.read_bytes()[:80])
    shards, values = tmp_path / "shards", {"labels": "folder", "max_rejected": 0.9}
    shard(ShardConfig(source=str(folder.parent), output=str(shards), workers=1, **values))
    index = json.loads((shards / "index.json").read_text()) | {"reasons": {"reason\x1b[31m": 1}}
    (shards / "index.json").write_text(json.dumps(index))
    monkeypatch.setattr("must.data.format.check_shard", fault)
    show_index(str(shards))
    with pytest.raises(ValueError, match="1 of 1 shards are broken"):
        verify(str(shards))
    print(make_text_table(results[0]))
    shown = capfd.readouterr().out
    for text in (label, "photos\x1b[2J", "reason\x1b[31m", "fault\x1b[2J"):
        assert text.replace("\x1b", "?") in shown, text
    for line in shown.splitlines():
        assert line.isprintable(), line
