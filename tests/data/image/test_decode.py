"""What a person sees is what is decoded; what cannot be seen is refused with a reason."""

import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image

from must.data.image.decode import check, decode, decode_plain, identify
from tests import zoo


def pixels(data: bytes, **options: int) -> np.ndarray:
    return np.asarray(decode(data, **options)).astype(int)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "PPM", "TIFF"])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_plain_files_give_exactly_what_pillow_gives(kind: str, mode: str) -> None:
    data = zoo.encoded(zoo.picture().convert(mode), kind)
    assert np.array_equal(pixels(data), np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))


def test_every_exif_orientation_is_turned_upright() -> None:
    stored = pixels(zoo.encoded(zoo.picture(), "JPEG", quality=95))
    upright = {
        1: stored,
        2: stored[:, ::-1],
        3: stored[::-1, ::-1],
        4: stored[::-1],
        5: stored.transpose(1, 0, 2),
        6: np.rot90(stored, -1),
        7: np.rot90(stored, 2).transpose(1, 0, 2),
        8: np.rot90(stored, 1),
    }
    for orientation, expected in upright.items():
        assert np.array_equal(pixels(zoo.turned(orientation)), expected), orientation
    assert np.array_equal(pixels(zoo.turned(99)), stored)


def test_a_tiff_is_turned_once() -> None:
    assert np.array_equal(pixels(zoo.turned(6, kind="TIFF")), np.rot90(np.asarray(zoo.picture()), -1))


@pytest.mark.parametrize("profile", [False, True])
def test_printing_inks_look_like_the_picture(profile: bool) -> None:
    """With a profile that does not fit four inks, too: it is ignored."""
    assert np.abs(pixels(zoo.cmyk(profile)) - np.asarray(zoo.picture())).mean() < 6


def test_16_bits_and_floats_keep_their_range() -> None:
    ramp = np.linspace(0, 255, 64 * 48).reshape(48, 64)
    for data in (zoo.grey16(), zoo.float_tiff()):
        assert np.abs(pixels(data) - ramp[..., None]).max() <= 1


def test_the_one_value_of_16_bits_that_is_transparent_is_white() -> None:
    values = np.array([[0x1000, 0x4000], [0x8000, 0xC000]], np.uint16)
    data = zoo.encoded(Image.fromarray(values))
    place = data.index(b"IDAT") - 4
    data = data[:place] + zoo.chunk(b"tRNS", b"\x40\x00") + data[place:]
    assert pixels(data)[..., 0].tolist() == [[16, 255], [128, 191]]
    check(identify(data))


def test_a_palette_gives_its_colours() -> None:
    assert np.abs(pixels(zoo.palette()) - np.asarray(zoo.picture())).mean() < 25
    assert (pixels(zoo.palette(transparent=True)) == 255).all(axis=-1).any()


def test_what_is_transparent_is_white() -> None:
    seen = pixels(zoo.transparent())
    assert (seen[:, :32] == 255).all() and (seen[:, 32:] == 0).all()


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_of_an_animation_the_first_frame_is_taken(kind: str) -> None:
    seen = pixels(zoo.animated(kind))
    assert np.abs(seen - np.asarray(zoo.picture(0))).mean() < 10  # a GIF has 256 colours
    assert np.abs(seen - np.asarray(zoo.picture(2))).mean() > 20


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty file"),
        (b"hello, I am no image", "not an image of a known format"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n", "not an image of a known format"),
        (zoo.truncated("JPEG"), "truncated"),
        (zoo.truncated("PNG"), "truncated|broken"),
        (zoo.truncated("WEBP"), "."),
        (zoo.truncated("GIF"), "truncated"),
        (zoo.truncated("TIFF"), "."),
        (zoo.bomb(), "exceeds limit of 178956970 pixels"),
    ],
    ids="empty text postscript jpeg png webp gif tiff bomb".split(),  # noqa: SIM905
)
def test_what_is_no_whole_image_is_refused_with_a_reason(data: bytes, reason: str) -> None:
    with pytest.raises(ValueError, match=reason) as error:
        decode(data)
    assert "\n" not in str(error.value) and "0x7" not in str(error.value)


def is_whole(function: Callable[[bytes], object], data: bytes) -> bool:
    try:
        function(data)
    except (ValueError, OSError, SyntaxError):
        return False
    return True


@pytest.mark.parametrize("options", [{}, {"progressive": True}])
def test_checking_a_jpeg_finds_damaged_bytes_as_decoding_does(options: dict[str, Any]) -> None:
    """Bytes overwritten anywhere; where the damage leaves a decodable stream, neither finds it."""
    whole = zoo.encoded(zoo.picture(1, 300, 200), "JPEG", quality=90, **options)
    random, verdicts = np.random.default_rng(0), set()
    for _ in range(400):
        data = bytearray(whole)
        start = int(random.integers(2, len(data) - 8))
        data[start : start + 8] = random.integers(0, 256, 8, np.uint8).tobytes()
        functions = (lambda part: identify(part).load(), lambda part: check(identify(part)))
        verdicts.add(tuple(is_whole(function, bytes(data)) for function in functions))
    assert verdicts == {(True, True), (False, False)}


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize(
    "options",
    [{"subsampling": 0}, {"subsampling": 1}, {"subsampling": 2}, {"progressive": True}, {"restart_marker_rows": 1}],
)
def test_the_faster_decoder_gives_pillows_pixels(mode: str, options: dict[str, Any]) -> None:
    pytest.importorskip("simplejpeg")
    random = np.random.default_rng(0)
    for width, height, quality in ((64, 48, 95), (61, 47, 30), (17, 33, 75), (1, 1, 90), (500, 375, 85)):
        noise = random.integers(0, 256, (height, width, 3), np.uint8)
        image = Image.blend(zoo.picture(1, width, height), Image.fromarray(noise), 0.3).convert(mode)
        data = zoo.encoded(image, "JPEG", quality=quality, **options)
        ours = decode_plain(data, identify(data))
        assert ours is not None and ours.mode == mode
        assert np.array_equal(np.asarray(ours), np.asarray(Image.open(io.BytesIO(data))))


def test_a_large_jpeg_is_decoded_small_but_never_too_small() -> None:
    data = zoo.encoded(zoo.picture(0, 800, 600), "JPEG", quality=95)
    assert decode(data, shorter_side=100).size == (200, 150)
    assert decode(data, shorter_side=160).size == (400, 300)
    assert decode(data, shorter_side=500).size == (800, 600)
