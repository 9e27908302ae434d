"""HEIC costs what its boxes and the HEVC inside say, and is read where pillow-heif is installed (`make test-heic`)."""

import base64
import io
import os
import zlib

import pytest
from PIL import Image

from must.api.cli import main
from must.data.image.cost import MAX_PIXELS, cost, refusal
from must.data.image.decode import decode
from must.data.image.headers.heif import can_read
from tests.data.image.hostile import box

# Red, and blue on its right, 96x64: one picture; and the same in two tiles of 64x64, lying on its side.
PHOTO = zlib.decompress(
    base64.b64decode(
        "eNpjYGCQSSupLMhIzUxmAILczDRDEDs3MzGNgYExLDe1JJEBAhQzUnKKoGyGgszkEgY0oJSZkw82xMWBgREIgYCxCkIDQR0QK2dm5qWBeSBRUSAnlQnK"
        "yyhLNgQx+QoyS3LhSq5lFhQVAOntmQXJ+UC6AqjMmZEZJDQBrEjuA8Ofvz9+MDDwMycAdUg4MPIw/v8PUsAMUsEMQnK7mBwSgZLaToyMaDILDBpZp73y"
        "1FyXxyTFwwESOgEiOBySgOrZXRgPFm1QcgBaI5ycn1OUl5xTARTmZWBrAAqJZBYXpEL9lgDEIGUCBZkVmSABZg4OoGkM4pkFubDgA4YISyMTMwuQ2Zab"
        "kggKvSoNxvWcDx5zz9m1/v+/nvz//wSXT/i7Tm9JU/D/5/tf3j9qNf9/qZ/U0akbF+/Z95/5zXNRBeeAtpjdatqb1oW+6JX8vZjx8dqL/L3R9xW6Ipru"
        "/H+rW70g/ugB44lz6wq01feH/3iXv4/z8L+7FY6uP7W3/GARnn86/3u2Tc2164ENAN2vhZw="
    )
)
needs_heif = pytest.mark.skipif(
    not can_read() and "REQUIRE_HEIF" not in os.environ,
    reason="pillow-heif is not installed; `make test-heic` runs this",
)


def with_box(more: bytes, inside: bytes) -> bytes:
    """PHOTO with one more box at the end of meta's or of iprp's ipco; what is said of lengths around it follows."""
    at = PHOTO.index(inside) - 4
    end = at + int.from_bytes(PHOTO[at : at + 4], "big")
    data = bytearray(PHOTO[:end] + more + PHOTO[end:])
    for outer in (b"meta", b"iprp", b"ipco"):
        start = data.index(outer) - 4
        if start <= at and end <= start + int.from_bytes(data[start : start + 4], "big"):
            data[start : start + 4] = (int.from_bytes(data[start : start + 4], "big") + len(more)).to_bytes(4, "big")
    return bytes(data)


def test_its_cost_is_read_from_boxes_and_from_hevc():
    found = cost(PHOTO)
    assert (found.format, found.width, found.height) == ("HEIF", 96, 64) and not refusal(found, MAX_PIXELS)
    assert cost(PHOTO.replace(b"ftypheic", b"ftypmif1", 1)) == found  # of a general brand, with heic among the others


@pytest.mark.parametrize(
    "data, reason",
    [
        (PHOTO.replace(b"\0\0\0\x60\0\0\0\x40", b"\0\0\x60\0\0\0\x40\0"), "more than"),  # ispe
        (
            with_box(box(b"iref", bytes(4) + box(b"dimg", b"\0\1\xff\xff" + b"\0\1" * 65535)), b"meta"),
            "5.0 are allowed",
        ),
        (with_box(box(b"ispe", bytes(4) + b"\0\0\x40\0\0\0\x30\0"), b"ipco"), "more than"),
    ],
    ids=["a size in a box", "a tile drawn 65,535 times", "another picture's size"],
)
def test_what_would_cost_too_much_is_refused(data, reason):
    assert reason in refusal(cost(data), MAX_PIXELS)


@pytest.mark.parametrize(
    "data, reason",
    [
        (PHOTO.replace(b"infe\2\0\0\0\0\1\0\0hvc1", b"infe\2\0\0\0\0\1\0\0unci"), "kind 'unci'"),
        (PHOTO.replace(b"infe\2\0\0\0\0\1\0\0hvc1", b"infe\2\0\0\0\0\1\0\0iovl"), "kind 'iovl'"),
        (PHOTO + box(b"meta", bytes(4)), "described twice"),
        (PHOTO + box(b"moov", bytes(4)), "an animated HEIC"),
        (PHOTO[: PHOTO.index(b"meta") - 4], "no size"),
    ],
    ids=["unpacked", "laid upon others", "two descriptions", "a film", "cut"],
)
def test_what_it_does_not_know_is_refused(data, reason):
    with pytest.raises(ValueError, match=reason):
        cost(data)


@pytest.mark.skipif(can_read(), reason="pillow-heif is installed")
def test_without_pillow_heif_it_says_what_is_missing(tmp_path, capsys):
    with pytest.raises(ValueError, match="pip install pillow-heif"):
        decode(PHOTO)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "IMG_0001.HEIC").write_bytes(PHOTO)
    with pytest.raises(SystemExit, match="2"):
        main(["shard", "--source", str(tmp_path / "photos"), "--output", str(tmp_path / "shards")])
    assert "1 .heic" in (said := capsys.readouterr().err) and "pip install pillow-heif" in said
    Image.new("RGB", (8, 8)).save(tmp_path / "photos" / "other.png")
    main(["shard", "--source", str(tmp_path / "photos"), "--output", str(tmp_path / "shards")])
    assert "1 .heic" in (said := capsys.readouterr().out) and "pip install pillow-heif" in said


@needs_heif
def test_with_pillow_heif_it_is_a_picture_like_others(tmp_path, capsys):
    picture = decode(PHOTO)
    assert picture.mode == "RGB" and picture.size == (96, 64)
    assert picture.getpixel((10, 30))[0] > 150 and picture.getpixel((85, 30))[2] > 150
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "IMG_0001.HEIC").write_bytes(PHOTO)
    (tmp_path / "photos" / "IMG_0002.heif").write_bytes(PHOTO + b"\0")
    main(["shard", "--source", str(tmp_path / "photos"), "--output", str(tmp_path / "shards")])
    assert "2 images" in capsys.readouterr().out
    with pytest.raises(ValueError):
        decode(PHOTO[:-60])


@needs_heif
@pytest.mark.parametrize("tiles", [0, 64])
def test_turned_tiled_and_transparent_pictures_lie_as_phones_show_them(tiles, monkeypatch):
    import pillow_heif

    monkeypatch.setattr(pillow_heif.options, "GRID_TILE_SIZE", tiles)
    picture = Image.new("RGBA", (96, 64), (200, 30, 30, 0))
    picture.paste((20, 40, 220, 255), (48, 0, 96, 64))
    file, exif = io.BytesIO(), Image.Exif()
    exif[0x112] = 6  # a phone held upright
    picture.save(file, "HEIF", quality=60, exif=exif.tobytes())
    shown = decode(file.getvalue())
    assert shown.size == (64, 96)
    assert min(shown.getpixel((30, 10))) > 240 and shown.getpixel((30, 85))[2] > 150  # white, where nothing is
