"""HEIC is read where pillow-heif is installed (`make test-heic`)."""

import base64
import io
import os
import struct
import zlib

import pytest
from PIL import Image

from must.api.cli import main
from must.data.image.decode import decode
from must.data.image.limits import can_read_heic, is_heic
from tests import zoo
from tests.data.shards.test_shard import rejected

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
MISSING = "pillow-heif is not installed; `make test-heic` runs this"
needs_heif = pytest.mark.skipif(not can_read_heic() and "REQUIRE_HEIF" not in os.environ, reason=MISSING)


def test_it_is_known_by_its_brands():
    assert is_heic(PHOTO) and is_heic(PHOTO.replace(b"ftypheic", b"ftypmif1", 1)) and not is_heic(b"RIFF" + PHOTO)


@pytest.mark.skipif(can_read_heic(), reason="pillow-heif is installed")
def test_without_pillow_heif_it_says_what_is_missing(tmp_path, capsys):
    with pytest.raises(ValueError, match="pip install pillow-heif"):
        decode(PHOTO)
    zoo.put(tmp_path / "photos", {"IMG_0001.HEIC": PHOTO})
    with pytest.raises(SystemExit, match="2"):
        main(["shard", "--source", str(tmp_path / "photos"), "--output", str(tmp_path / "shards")])
    assert "1 .heic" in (said := capsys.readouterr().err) and "pip install pillow-heif" in said
    Image.new("RGB", (8, 8)).save(tmp_path / "photos" / "other.png")
    main(["shard", "--source", str(tmp_path / "photos"), "--output", str(tmp_path / "shards")])
    assert "1 .heic" in (said := capsys.readouterr().out) and "pip install pillow-heif" in said


def box(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", 8 + len(body)) + kind + body


def test_a_malformed_one_is_rejected_and_the_others_are_packed(tmp_path):
    """Its table of items is empty, or cut off in the middle of a number."""
    zoo.fill(tmp_path / "photos", 3)
    for number, table in enumerate((box(b"iinf", b""), box(b"iinf", bytes(4) + b"\0\1" + box(b"infe", b"\2")))):
        bad = box(b"ftyp", b"heic" + bytes(4) + b"heicmif1") + box(b"meta", bytes(4) + table)
        (tmp_path / "photos" / f"bad{number}.png").write_bytes(bad)
    main(["shard", str(tmp_path / "photos"), "--output", str(tmp_path / "shards"), "--max-rejected", "0.5"])
    assert set(rejected(tmp_path / "shards")) == {"bad0.png", "bad1.png"}


@needs_heif
def test_with_pillow_heif_it_is_a_picture_like_others(tmp_path, capsys):
    picture = decode(PHOTO)
    assert picture.mode == "RGB" and picture.size == (96, 64)
    assert picture.getpixel((10, 30))[0] > 150 and picture.getpixel((85, 30))[2] > 150
    zoo.put(tmp_path / "photos", {"IMG_0001.HEIC": PHOTO, "IMG_0002.heif": PHOTO + b"\0"})
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
