"""Pictures that are decoded in a program beside this one: the same pixels, and an end to those that cost too much."""

import struct
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from benchmarks import image_cost as hard
from must.base.processes import KilledWorkerError
from must.data.augment import TrainViews
from must.data.image import limits
from must.data.image.decode import decode
from must.data.image.limits import MAX_PIXELS, Helper
from must.data.image.preprocess import EvalView
from must.data.loader import EvalSource, TrainDataset
from must.data.reader import ShardReader
from must.deploy.predict.images import Found
from must.deploy.predict.predict import read_pixels
from must.deploy.serve.protocol import Refused, decode_pixels
from tests import zoo
from tests.data.augment.test_views import PREPROCESS, SETTINGS
from tests.data.shards.test_shard import run

ODD = zoo.encoded(zoo.picture(0, 31, 31), "TIFF")
GOOD = zoo.encoded(zoo.picture(0, 16, 12), "TIFF")
ODD_ONES = {
    "its time": ("while True: pass", r"^takes more than 15 s of one core$"),
    "its memory": ("bytes(1 << 36)", "^too large for the memory$"),
    "a crash": ("os.kill(os.getpid(), signal.SIGSEGV)", r"^its decoder crashed \(SIGSEGV\)$"),
}
PROGRAM = """
import os, signal
from must.data.image import limits, decode
limits.MAX_SECONDS = 0.15
def decoded(data, *limits):
    if data == {odd!r}:
        {does}
    return decode.decode(data, *limits)
limits.work(decoded)
"""


@pytest.fixture
def does(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[str]:
    """A decoder that does that to the one picture ODD; the reason why it is refused."""
    act, reason = ODD_ONES[request.param]
    monkeypatch.setattr(limits, "PROGRAM", PROGRAM.format(odd=ODD, does=act))
    limits.idle_helpers.drop()
    yield reason
    limits.idle_helpers.drop()


@pytest.mark.parametrize("kind", ["TIFF", "JPEG2000", "AVIF", "GIF"])
def test_the_pixels_are_those_of_decoding_here(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data = zoo.encoded(zoo.picture(1, 61, 47), kind)
    there = decode(data)
    assert limits.idle_helpers(), "it was decoded here"
    monkeypatch.setattr(limits, "memory_limited", True)
    assert there.mode == "RGB" and np.array_equal(np.asarray(there), np.asarray(decode(data)))
    with pytest.raises(ValueError) as here:
        decode(data[: len(data) // 2])
    monkeypatch.setattr(limits, "memory_limited", False)
    with pytest.raises(ValueError) as beside:
        decode(data[: len(data) // 2])
    assert str(beside.value) == str(here.value)


@pytest.mark.parametrize("does", ODD_ONES, indirect=True)
def test_a_picture_that_costs_more_than_it_says_is_refused_and_the_next_one_is_decoded(does: str) -> None:
    for _ in range(2):
        with pytest.raises(ValueError, match=does):
            decode(ODD)
        assert decode(GOOD).size == (16, 12)


def test_a_helper_whose_parent_is_killed_ends_in_silence(capfd: pytest.CaptureFixture[str]) -> None:
    """While it decodes: its answer, larger than the buffer of a pipe, finds no reader."""
    helper = Helper()
    helper.connection.send_bytes(b"%d" % MAX_PIXELS)
    helper.connection.send_bytes(zoo.encoded(zoo.picture(0, 2000, 1000), "TIFF"))
    helper.connection.poll(None)  # it has begun to answer
    helper.connection.close()
    assert helper.process.wait() == 0 and capfd.readouterr().err == ""


@pytest.mark.parametrize("does", ["its time"], indirect=True)
def test_prediction_training_and_evaluation_go_on(does: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    view, odd_file = EvalView(PREPROCESS), tmp_path / "in" / "odd.tif"
    zoo.fill(tmp_path / "in", 6)
    odd_file.write_bytes(ODD)
    assert read_pixels(Found(str(odd_file)), view) == (None, does.strip("^$"))
    with pytest.raises(Refused, match=does.strip("^$")):
        decode_pixels(ODD, view, 10**6)
    run(tmp_path / "in", tmp_path / "out")
    reader = ShardReader(str(tmp_path / "out"), "train")
    (odd,) = (n for n in range(len(reader)) if "odd" in reader.description(n)["source"])
    assert TrainDataset(reader, TrainViews(*SETTINGS), 0)[0, odd][-1] == 1
    assert "(odd.tif) cannot be decoded and is replaced" in capfd.readouterr().err
    for workers in (0, 1):  # a loader's process may have no children of multiprocessing
        source = EvalSource(reader, PREPROCESS, 4, workers)
        assert sum(len(batch.labels) for batch in source) == 6 and source.skipped == 1


def zeros(size: int) -> bytes:
    """`size` zero bytes in zlib's format, from a repeated block, because compressing a gigabyte takes seconds."""
    first, last = (zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS) for _ in range(2))
    block = first.compress(bytes(1 << 20)) + first.flush(zlib.Z_FULL_FLUSH)
    end = last.compress(bytes(size % (1 << 20))) + last.flush()
    return b"\x78\xda" + block * (size >> 20) + end + struct.pack(">I", size % 65521 << 16 | 1)


def large_tile(side: int) -> bytes:
    """A TIFF of 64 x 64 pixels in one tile of `side` x `side` (deflate)."""
    packed = zeros(side * side)
    entries = {256: 64, 257: 64, 258: 8, 259: 8, 262: 1, 277: 1, 322: side, 323: side, 324: 8, 325: len(packed)}
    directory = b"".join(struct.pack("<HHLL", tag, 4, 1, value) for tag, value in entries.items())
    return b"II\x2a\0" + struct.pack("<L", 8 + len(packed)) + packed + struct.pack("<H", 10) + directory + bytes(4)


@pytest.mark.skipif(sys.platform != "linux", reason="limits on memory are Linux's")
@pytest.mark.parametrize("make", [lambda: large_tile(36_000), lambda: hard.webp_animated(9_400, 9_400)])
def test_a_small_file_takes_less_than_a_gigabyte(make: Callable[[], bytes], tmp_path: Path) -> None:
    """1.3 and 1.5 GB for pictures of some kilobytes: refused in a program beside this one, and by `must shard`."""
    limits.idle_helpers.drop()
    with pytest.raises(ValueError, match=r"^too large for the memory$"):
        decode(make())
    (helper,) = limits.idle_helpers()
    status = Path(f"/proc/{helper.process.pid}/status").read_text()
    assert int(status.partition("VmHWM:")[2].split()[0]) < 1_000_000  # kB
    zoo.put(tmp_path / "in", {"a.png": zoo.encoded(zoo.picture()), "large": make()})
    assert run(tmp_path / "in", tmp_path / "out").reasons == {"too large for the memory": 1}


def test_a_program_that_somebody_else_ends_is_no_fault_of_the_picture() -> None:
    limits.idle_helpers.drop()
    decode(GOOD)
    (helper,) = limits.idle_helpers()
    helper.process.kill()
    with pytest.raises(KilledWorkerError):
        decode(GOOD)
    assert decode(GOOD).size == (16, 12)


def test_a_folder_with_files_named_as_modules_is_harmless(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "PIL.py").write_text("raise SystemExit('taken from the folder of the images')")
    monkeypatch.chdir(tmp_path)
    assert decode(GOOD).size == (16, 12)


# -- what is decoded here, because its header says what it costs ------------------------------------------------------
def noise(side: int, kind: str, **options: Any) -> bytes:
    values = np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8)
    return zoo.encoded(Image.fromarray(values), kind, **options)


PNG = zoo.encoded(zoo.picture())
COSTLY = {
    "JPEG of scans": lambda: hard.scans(3300, 3300, 20),
    "JPEG of noise": lambda: noise(2000, "JPEG", progressive=True, quality=95),
    "JPEG of empty segments": lambda: hard.segments(0xE0, b"", 150_000),
    "JPEG of Photoshop's": lambda: hard.segments(0xED, b"Photoshop 3.0\0" + b"8BIM\4\4".ljust(12, b"\0") * 5400, 60),
    "JPEG CMYK, profile of steps": lambda: hard.cmyk_profile(10_000),
    "PNG of chunks": lambda: PNG[:33] + zoo.chunk(b"abCd", b"") * 50_000 + PNG[33:],
    "PNG 16 bits interlaced": lambda: hard.png(5000, 5000, 16, 6, interlaced=True),
    "WebP lossless noise": lambda: noise(2200, "WEBP", lossless=True, method=0),
}
HERE = """
import sys
from must.data.image import decode, limits
data = sys.stdin.buffer.read()
found = limits.estimate_decoding(data)
assert found.format in decode.PLAIN_FORMATS and found.seconds <= decode.TRUSTED, found
with limits.limits(limits.MAX_PIXELS, len(data)):
    decode.decode(data)
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", COSTLY)
def test_what_is_decoded_here_stays_below_the_deadline(kind: str) -> None:
    """By the same deadline and limit on memory as for all others, of a process that they would end."""
    done = subprocess.run([sys.executable, "-c", HERE], input=COSTLY[kind](), capture_output=True, check=False)
    assert done.returncode == 0, (done.returncode, done.stderr.decode()[-500:])
