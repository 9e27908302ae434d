"""What is refused by its header, and what a picture may cost in a worker of `must shard`."""

import struct
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks import image_cost as hard
from must.data.augment import TrainViews
from must.data.image import preprocess
from must.data.image.decode import check, decode, identify
from must.data.image.limits import MAX_EXIF, MAX_SCANS, MAX_SEGMENTS
from must.data.loader import EvalSource, TrainDataset
from must.data.reader import ShardReader
from tests import zoo
from tests.data.augment.test_views import PREPROCESS, SETTINGS
from tests.data.shards.test_shard import run


def thin(length: int) -> bytes:
    return zoo.encoded(Image.new("L", (1, length)))


def bitmap(width: int, height: int, bits: int) -> bytes:
    return struct.pack("<IiiHHI", 40, width, height, 1, bits, 0) + bytes(100)


ICON = struct.pack("<3H4B2H2I", 0, 1, 1, 16, 16, 0, 0, 1, 32, len(zoo.bomb()), 22) + zoo.bomb()
REFUSED = {
    "an icon of a huge png": (ICON, r"Image size \(3600000000 pixels\) exceeds limit .*"),
    "a large bitmap": (
        struct.pack("<2sIII", b"BM", 99, 0, 54) + bitmap(9400, 9400, 24),
        "9400x9400 is more than 80000000 pixels",
    ),
    "a thin image": (thin(201), "1x201 is thinner than 1 to 200"),
    "many scans": (hard.scans(64, 48, MAX_SCANS), "more than 100 scans"),
    "many segments": (hard.segments(0xE0, b"", MAX_SEGMENTS), "more than 10000 segments before its pixels"),
    "EXIF of itself": (hard.exif_of_itself(4000, 200_000), "EXIF metadata of more than 65536 bytes"),
}


@pytest.mark.parametrize(("data", "reason"), REFUSED.values(), ids=REFUSED)
def test_what_costs_too_much_is_refused_before_it_is_decoded(data: bytes, reason: str) -> None:
    with pytest.raises(ValueError, match=f"^{reason}$"):
        identify(data, max_pixels=80_000_000)


def test_what_is_whole_passes() -> None:
    """Noise holds FF, which is no scan in compressed data; EXIF of a PNG may be large, and is cut."""
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (400, 400, 3), np.uint8))
    exif = hard.orientation(6) + bytes(2 * MAX_EXIF)
    for data in (thin(200), zoo.encoded(noise, "JPEG", quality=100, restart_marker_blocks=1)):
        check(identify(data))
    assert decode(zoo.encoded(noise.crop((0, 0, 40, 20)), "PNG", exif=exif)).size == (20, 40)


VARIANTS = {
    "RGBA": lambda a: Image.fromarray(a),
    "16 bits": lambda a: Image.fromarray(a[..., :2].copy().view(np.uint16)[..., 0]),
    "32 bits": lambda a: Image.fromarray(a.view(np.int32)[..., 0]),
    "floats": lambda a: Image.fromarray(a[..., 0].astype(np.float32) - 7),
}


@pytest.mark.parametrize("kind", VARIANTS)
def test_strips_give_the_pixels_of_the_whole(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    image = VARIANTS[kind](np.random.default_rng(0).integers(0, 256, (97, 61, 4), np.uint8))
    whole = np.asarray(preprocess.to_rgb(image))
    monkeypatch.setattr(preprocess, "STRIP", 61 * 10)
    assert np.array_equal(np.asarray(preprocess.to_rgb(image)), whole)
    preprocess.check_colors(image)


def test_one_value_that_is_not_finite_is_found_in_any_strip(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.zeros((97, 61), np.float32)
    values[90, 3] = np.nan
    monkeypatch.setattr(preprocess, "STRIP", 61 * 10)
    for function in (decode, lambda data: check(identify(data))):
        with pytest.raises(ValueError, match="not finite"):
            function(zoo.encoded(Image.fromarray(values), "TIFF"))


@pytest.mark.skipif(sys.platform != "linux", reason="limits on memory are Linux's")
def test_a_small_file_that_takes_more_than_a_gigabyte_is_rejected_alone(tmp_path: Path) -> None:
    zoo.put(tmp_path / "in", {"a.png": zoo.encoded(zoo.picture()), "canvas.webp": hard.webp_animated(9_400, 9_400)})
    assert run(tmp_path / "in", tmp_path / "out").reasons == {"too large for the memory": 1}


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
