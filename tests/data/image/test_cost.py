"""What one image file may cost: refused by its header, or decoded in memory that follows its pixels alone."""

import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks import image_cost as hard
from must.data.augment import TrainViews
from must.data.image import limits, preprocess
from must.data.image.decode import check, decode, identify
from must.data.image.limits import MAX_PARTS, MAX_SCANS
from must.data.loader import EvalSource, TrainDataset
from must.data.reader import ShardReader
from tests import zoo
from tests.common import printed
from tests.data.augment.test_views import PREPROCESS, SETTINGS
from tests.data.shards.test_shard import run


def thin(length: int) -> bytes:
    return zoo.encoded(Image.new("L", (1, length)))


def scans(repeated: int, width: int = 64, height: int = 48, start: bytes = b"") -> bytes:
    """A progressive JPEG, its last scan once more for `repeated` times, and `start` behind its first two bytes."""
    data = zoo.encoded(zoo.picture(0, width, height), "JPEG", progressive=True)
    last = data[data.rindex(b"\xff\xda") : -2]
    return data[:2] + start + data[2:-2] + last * repeated + data[-2:]


def icon(inside: bytes) -> bytes:
    return struct.pack("<3H4B2H2I", 0, 1, 1, 16, 16, 0, 0, 1, 32, len(inside), 22) + inside


def bitmap(width: int, height: int, bits: int) -> bytes:
    return struct.pack("<IiiHHI", 40, width, height, 1, bits, 0) + bytes(100)


BITMAP = struct.pack("<2sIII", b"BM", 99, 0, 54)
MANY_PARTS = f"its headers have more than {MAX_PARTS} parts"
REFUSED = {
    "an icon of a huge png": (icon(zoo.bomb()), r"Image size \(3600000000 pixels\) exceeds limit .*"),
    "an icon of a huge bitmap": (icon(bitmap(60000, 120000, 32)), r"Image size \(7200000000 pixels\) exceeds limit .*"),
    "a large bitmap": (BITMAP + bitmap(9500, 9500, 24), "9500x9500 is more than 89478485 pixels"),
    "a thin bitmap": (zoo.encoded(Image.new("L", (1, 201)), "BMP"), "1x201 is thinner than 1 to 200"),
    "a thin image": (thin(201), "1x201 is thinner than 1 to 200"),
    "without a header": (
        zoo.encoded(zoo.picture(), "JPEG").replace(b"\xff\xc0", b"\xff"),
        "damaged: its headers say 0x0",
    ),
    "many scans": (scans(MAX_SCANS), "more than 100 scans"),
    "markers with fillers": (scans(MAX_SCANS).replace(b"\xff\xda", b"\xff\xff\xff\xda"), "more than 100 scans"),
    "many segments": (b"\xff\xd8" + b"\xff\xe0\0\2" * (MAX_PARTS + 1), MANY_PARTS),
    "many chunks": (zoo.encoded(zoo.picture())[:33] + zoo.chunk(b"abCd", b"") * MAX_PARTS, MANY_PARTS),
    "EXIF of itself": (hard.exif_of_itself(4000, 200_000), "its metadata point at the same bytes many times"),
}


@pytest.mark.parametrize(("data", "reason"), REFUSED.values(), ids=REFUSED)
def test_what_costs_too_much_is_refused_before_it_is_decoded(data: bytes, reason: str) -> None:
    with pytest.raises(ValueError, match=f"^{reason}$"):
        identify(data)


@pytest.mark.parametrize("data", [hard.profiles(2500), hard.segments(0xDB, bytes(65000), 500)], ids=["PNG", "JPEG"])
def test_what_takes_long_to_open_is_opened_by_a_process_with_limits(data: bytes) -> None:
    limits.idle_helpers.drop()
    assert identify(data).size == (64, 64) and limits.idle_helpers()


def test_filling_costs_no_more_than_its_length() -> None:
    """A regular expression that tries every FF of a long run as the first one holds all threads for minutes."""
    program = "from must.data.image.limits import estimate_decoding as estimate; "
    program += "estimate(bytes([255, 216]) + bytes([255]) * 3_000_000)"
    assert subprocess.run([sys.executable, "-c", program], timeout=60, check=False).returncode == 0


def thumbnail() -> bytes:
    """An APP1 segment that holds 200 scans of another picture, as EXIF holds thumbnails."""
    inside = b"Exif\0\0" + b"\xff\xda\x00\x02" * 200
    return b"\xff\xe1" + struct.pack(">H", len(inside) + 2) + inside


WHOLE = {
    "1 to 200": thin(200),
    "70 scans": scans(60),
    "scans in a thumbnail": scans(0, start=thumbnail()),
    "scans behind the end": zoo.encoded(zoo.picture(), "JPEG") + scans(0)[4:].replace(b"\xff\xda", b"\xff\xda" * 150),
    "a small tiff": zoo.encoded(zoo.picture(0, 10, 10), "TIFF", compression="tiff_lzw"),
    "an icon": zoo.encoded(zoo.picture(), "ICO"),
}


@pytest.mark.parametrize("kind", WHOLE)
def test_what_is_whole_passes(kind: str) -> None:
    check(identify(WHOLE[kind]))
    assert min(decode(WHOLE[kind]).size) >= 1


def test_compressed_data_is_not_taken_for_scans() -> None:
    """Noise at the best quality, whose compressed bytes hold FF, each followed by 00; and restarts between them."""
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (400, 400, 3), np.uint8))
    for options in ({}, {"progressive": True}, {"restart_marker_blocks": 1}):
        data = zoo.encoded(noise, "JPEG", quality=100, **options)
        assert data.count(b"\xff\x00") > 500
        assert decode(data).size == (400, 400)


VARIANTS = {
    "RGBA": lambda a: Image.fromarray(a),
    "LA": lambda a: Image.frombytes("LA", (61, 97), a[..., :2].tobytes()),
    "16 bits": lambda a: Image.fromarray(a[..., :2].copy().view(np.uint16)[..., 0]),
    "32 bits": lambda a: Image.fromarray(a.view(np.int32)[..., 0]),
    "32 bits, small": lambda a: Image.fromarray(a[..., 0].astype(np.int32)),
    "floats": lambda a: Image.fromarray(a[..., 0].astype(np.float32) - 7),
    "floats up to 1": lambda a: Image.fromarray(a[..., 0] / np.float32(255)),
}


@pytest.mark.parametrize("kind", VARIANTS)
def test_strips_give_the_pixels_of_the_whole(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    image = VARIANTS[kind](np.random.default_rng(0).integers(0, 256, (97, 61, 4), np.uint8))
    whole = np.asarray(preprocess.to_rgb(image))
    for pixels in (1, 61 * 10, 61 * 96):
        monkeypatch.setattr(preprocess, "STRIP", pixels)
        assert np.array_equal(np.asarray(preprocess.to_rgb(image)), whole)
        preprocess.check_colors(image)


def test_one_value_that_is_not_finite_is_found_in_any_strip(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.zeros((97, 61), np.float32)
    values[90, 3] = np.nan
    monkeypatch.setattr(preprocess, "STRIP", 61 * 10)
    for function in (decode, lambda data: check(identify(data))):
        with pytest.raises(ValueError, match="not finite"):
            function(zoo.encoded(Image.fromarray(values), "TIFF"))


MEASURE = r"""
import re, sys
from must.data.image.decode import limits, check, decode, identify
limits.memory_limited = True
def peak():  # of this program; the one in getrusage counts the process that it was forked from as well
    return 1024 * int(re.search(r"VmHWM:\s*(\d+)", open("/proc/self/status").read())[1])
data, before = open(sys.argv[1], "rb").read(), peak()
decode(data) if sys.argv[2] == "decode" else check(identify(data))
print(peak() - before)
"""


@pytest.mark.parametrize(("act", "limit"), [("decode", 9.5), ("check", 5.5)])
@pytest.mark.parametrize("mode", ["I;16", "RGBA"])
def test_memory_follows_the_pixels(tmp_path: Path, mode: str, act: str, limit: float) -> None:
    """Bytes a pixel at the peak: Pillow's own image (4, or 2) and the result (4)."""
    side = 3000
    (tmp_path / "image.png").write_bytes(zoo.encoded(Image.new(mode, (side, side)), compress_level=1))
    command = [sys.executable, "-c", MEASURE, str(tmp_path / "image.png"), act]
    assert int(printed(*command)) / side**2 < limit


def test_the_shards_limit_of_pixels_holds_in_training_and_evaluation(tmp_path: Path) -> None:
    """Shown with a lower limit: the index's is the one that counts, and images above it are expensive to test with.
    Training replaces the image by the next one, evaluation leaves it out."""
    zoo.fill(tmp_path / "in", 20)
    (tmp_path / "in" / "odd").write_bytes(zoo.encoded(zoo.picture(0, 31, 31)))
    run(tmp_path / "in", tmp_path / "out")
    index = tmp_path / "out" / "index.json"
    index.write_text(index.read_text().replace('"max_pixels": 89478485', '"max_pixels": 500'))
    reader = ShardReader(str(tmp_path / "out"), "train")
    (odd,) = (n for n in range(len(reader)) if reader.description(n)["source"] == "odd")
    assert TrainDataset(reader, TrainViews(*SETTINGS), 0)[0, odd][-2:] == ((odd + 1) % len(reader), 1)
    source = EvalSource(reader, PREPROCESS, 8, 0)
    assert sum(len(batch.labels) for batch in source) == 20 and source.skipped == 1
