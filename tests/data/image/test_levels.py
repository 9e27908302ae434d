"""Pictures of a camera with 12 bits, in files of 16: what is dark in the folder is black, and what is bright white."""

from pathlib import Path

import numpy as np
from PIL import Image

from must.data.image.preprocess import EvalView, Preprocess, set_levels
from must.data.loader import EvalSource
from must.data.reader import ShardReader
from tests import zoo
from tests.data.augment.test_views import PREPROCESS
from tests.data.shards.test_shard import run


def camera(image: Image.Image, gain: int = 12) -> Image.Image:
    """The values that a camera of 12 bits gives for a grey picture of 8."""
    return Image.fromarray((200 + gain * np.asarray(image.convert("L"), np.uint16)).astype(np.uint16))


def whole(seed: int) -> Image.Image:
    """With black and white in it."""
    values = np.asarray(zoo.picture(seed).convert("L")).copy()
    values[:9], values[-9:] = 0, 255
    return Image.fromarray(values)


def test_a_folder_has_levels_which_stay_when_it_grows(tmp_path: Path, capfd) -> None:
    hot = np.asarray(camera(whole(9))).copy()
    hot[20, 20] = 65535  # one pixel
    files = {
        f"{n}.{kind}": zoo.encoded(camera(whole(n)), name)
        for n, (kind, name) in enumerate([("tif", "TIFF"), ("png", "PNG")])
    }
    files |= {
        "hot.png": zoo.encoded(Image.fromarray(hot)),
        "dark.png": zoo.encoded(camera(whole(3)).point(lambda v: v * 0 + 210)),
    }
    files |= {
        "night.jpg": zoo.encoded(Image.new("RGB", (50, 40), (3, 3, 3)), "JPEG"),
        "page.png": zoo.encoded(Image.new("L", (9, 9), 250)),
    }
    zoo.put(tmp_path / "in", files)
    made = run(tmp_path / "in", tmp_path / "out", split={"train": 1.0})
    assert made.levels == (200, 3260) and made.tones == {"black": 2, "white": 1}
    assert "3 images (2 almost black, 1 almost white)" in capfd.readouterr().out
    reader = ShardReader(str(tmp_path / "out"), "train")
    source, view = EvalSource(reader, PREPROCESS, 8, 0), EvalView(PREPROCESS)
    seen = {name: pixels.numpy() for batch in source for name, pixels in zip(batch.sources, batch.pixels, strict=True)}
    for n, name in enumerate(["0.tif", "1.png"]):
        assert np.abs(seen[name].astype(int) - view(whole(n).convert("RGB"))).max() <= 1
    zoo.put(tmp_path / "more", {"brighter.tif": zoo.encoded(camera(whole(5), 16), "TIFF")})
    assert run(tmp_path / "more", tmp_path / "out", split={"train": 1.0}, append=True).levels == (200, 3260)


def test_a_model_keeps_its_levels() -> None:
    mine = Preprocess(levels=(1, 2))
    assert Preprocess.from_dict(mine.to_dict()) == set_levels(mine, (3, 4)) == mine
    assert set_levels(Preprocess(), (3, 4)).levels == (3, 4) and "levels" not in Preprocess().to_dict()
