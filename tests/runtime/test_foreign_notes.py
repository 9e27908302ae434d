"""Files in the notes' folder that are no notes: the summary is written all the same."""

import json

import pytest

from must.base import storage
from must.runtime.notes import read_notes, stage_note
from must.runtime.places import WorkUri
from must.runtime.summary import summarize

NOTE = {"stage": "train", "state": "done", "started": 1.0}
BYTES = {
    "a list": b"[]", "a number": b"5", "no JSON": b"{", "bytes": b"\xff\xfe", "deep": b"[" * 100_000, "nothing": b"",
    "other keys": b'{"name": "x"}', "endless": b'{"stage": "x", "seconds": Infinity}',
    "never": b'{"stage": "x", "started": NaN}', "in a long time": b'{"stage": "x", "started": 1e300}',
}  # fmt: skip
ODD = {
    "stage": ["x"], "started": "today", "lines": [1, 2], "tries": [{"code": 1}], "facts": {"report": 1}, "code": None,
    "result": 5,
}  # fmt: skip
FOREIGN = BYTES | {f"odd {name}": json.dumps(NOTE | {name: value}).encode() for name, value in ODD.items()}


@pytest.mark.parametrize("kind", FOREIGN)
def test_another_file_among_the_notes_does_not_stop_the_summary(tmp_path, kind):
    work = str(tmp_path)
    with stage_note(work, "shard", run_id="r1") as note:
        note.result = "12 images"
    storage.write_bytes(storage.join(WorkUri(work).notes("r1"), "other.json"), FOREIGN[kind])
    assert [note.stage for note in read_notes(work, "r1")] == ["shard"]
    assert "12 images" in summarize(work, "r1", "SUCCEEDED", "again").to_markdown()


def test_what_a_stage_printed_cannot_steer_whoever_reads_the_page(tmp_path):
    raw = "\x1b[2J\u202e\ud800 | ```"
    odd = NOTE | {"state": "failed", "code": 1, "stage": raw, "result": raw, "host": raw, "lines": [raw, "x" * 10**6]}
    storage.write_bytes(storage.join(WorkUri(str(tmp_path)).notes("r1"), "odd.json"), json.dumps(odd).encode())
    summary = summarize(str(tmp_path), "r1", "FAILED", "again")
    for page in (summary.to_markdown(), summary.to_text()):
        assert all(line.isprintable() for line in page.split("\n")) and len(page) < 5000
