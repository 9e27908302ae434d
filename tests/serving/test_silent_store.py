"""A signal ends a program that waits for a store, whether that is silent or busy."""

import re
import signal
import subprocess
import sys
import threading
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from tests.common import until
from tests.local_server import Answer, serving
from tests.serving.server import SILENCE
from tests.stores import use_server


@pytest.fixture
def store(request, monkeypatch, digits):
    """The shards of the digits and a photo in a bucket that answers no more once a tar, the photo or anything else is
    asked for; and the event that this has happened."""
    asked, end = threading.Event(), threading.Event()

    def answer(http):
        url = urlsplit(http.path)
        if url.path.endswith("/b/bucket"):  # the client asks where it is
            return Answer(403)
        if url.path.endswith("/b/bucket/o"):
            return Answer(200, {"items": [{"name": "photos/one.png", "size": "9"}]})
        name = unquote(url.path.rpartition("/")[2])
        file = Path(digits.shards, name.removeprefix("shards/"))
        if not asked.is_set() and name.startswith("shards/") and not name.endswith(".tar"):
            if not file.exists():
                return Answer(404)
            if "alt=media" not in url.query:
                return Answer(200, {"name": name, "size": str(file.stat().st_size), "generation": "1"})
            start, stop = re.fullmatch(r"bytes=(\d+)-(\d*)", http.headers.get("Range", "bytes=0-")).groups()
            return Answer(200, file.read_bytes()[int(start) : int(stop) + 1 if stop else None])
        asked.set()
        if request.param == "silent":
            end.wait(SILENCE)
        return Answer(503, b"try again")

    with serving(answer) as url:
        use_server(monkeypatch, "gs", url)
        yield asked
        end.set()


CASES = [
    *(("silent", command) for command in ("serve a registry", "serve a file", "predict", "shard")),
    *(("busy", command) for command in ("serve a registry", "predict")),
    pytest.param("silent", "review", marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("store", "command"), CASES, indirect=["store"])
def test_a_signal_ends_a_program_that_waits_for_a_store(store, exported, digits, tmp_path, command):
    new, shards = tmp_path / "new", "--shards=gs://bucket/shards"
    reviewed = [f"--model={digits.adapted}", f"--baseline={digits.classifier}", shards, "--device=cpu", "--workers=1"]
    flags, code = {
        "serve a registry": (["--registry=gs://bucket/registry", "--port=0", "--drain=0"], 0),
        "serve a file": (["--model=gs://bucket/model.onnx", "--port=0"], 75),
        "predict": (["gs://bucket/photos/", f"--model={exported[1]}", f"--output={new}/t.csv"], 75),
        "shard": (["--source=gs://bucket/photos", "--labels=none", f"--output={new}", "--workers=1"], 75),
        "review": ([*reviewed, f"--output={tmp_path}/review", "--port=0"], 0),
    }[command]
    arguments = [sys.executable, "-m", "must", command.partition(" ")[0], *flags]
    with subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True) as program:
        try:
            until(store.is_set, process=program)
            program.send_signal(signal.SIGTERM)
            assert program.wait(SILENCE) == code
            assert "Traceback" not in program.stderr.read()
        finally:
            program.kill()
    assert command != "predict" or not list(new.iterdir()), "no temporary file is left"
