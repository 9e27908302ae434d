"""Pictures of 12 bits from the folder to the ONNX file and the server: the labels of the same pictures with 8 bits."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import must
from must.api.inputs import to_source
from must.data.image.preprocess import EvalView
from must.prediction.onnx_model import OnnxClassifier
from must.serving.protocol import decode_pixels
from tests.api.conftest import adapt, write_photos
from tests.data.image.test_levels import camera


@pytest.mark.slow
def test_12_bits_in_16_are_seen_as_8_bits_are(tmp_path):
    photos = sorted(write_photos(tmp_path / "photos", range(60)).iterdir())
    plain = adapt(tmp_path, test_images="", train="no")
    before = must.load(tmp_path / "work")(photos)
    folder = tmp_path / "camera" / "photos"
    folder.mkdir(parents=True)
    deep = [folder / f"{path.stem}.{'tif' if n % 2 else 'png'}" for n, path in enumerate(photos)]
    for path, other in zip(photos, deep, strict=True):
        camera(Image.open(path)).save(other)
    adapted = adapt(folder.parent, test_images="", train="no")
    onnx = Path(adapted.export().output) / "model.onnx"
    for model in (must.load(folder.parent / "work"), must.load(onnx)):
        for images in (deep, [Image.open(path) for path in deep]):
            found = model(images)
            assert [one.name for one in found] == [one.name for one in before]
            assert np.allclose([one.probability for one in found], [one.probability for one in before], atol=0.02)
    preprocess = OnnxClassifier(onnx).preprocess
    assert preprocess.levels and not must.load(plain.bundle)._classifier.preprocess.levels
    expected = np.asarray(EvalView(preprocess)(Image.open(photos[0]).convert("RGB")), int)
    assert np.abs(decode_pixels(deep[0].read_bytes(), EvalView(preprocess), 10**6) - expected).max() <= 3
    source, _ = to_source([Image.open(path) for path in deep[:2]], tmp_path)
    written = [Image.open(path) for path in sorted(Path(source).rglob("*.png"))]
    assert [image.getextrema() for image in written] == [Image.open(path).getextrema() for path in deep[:2]]
