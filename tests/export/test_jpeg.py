"""`must export --input jpeg`: one file that takes a picture's bytes and says what `must predict` says."""

import io
import json
from dataclasses import replace

import numpy as np
import onnx
import pytest
from PIL import Image

from must.config import ExportConfig
from must.data.image.preprocess import EvalView, Preprocess
from must.deploy.export.jpeg import FILE, compare_files, is_plain, open_with_decoder, with_decoder
from must.deploy.export.onnx import export
from must.deploy.predict.session import OnnxClassifier

MAX_PIXELS = 10**7


def encoded(data, size, mode="RGB", kind="JPEG", **more):
    file = io.BytesIO()
    Image.open(io.BytesIO(data)).convert(mode).resize(size, Image.Resampling.BICUBIC).save(file, kind, **more)
    return file.getvalue()


@pytest.fixture(scope="module")
def files(digits, tmp_path_factory):
    folder = tmp_path_factory.mktemp("jpeg")
    config = {"model": digits.adapted, "shards": digits.shards, "images": 20, "input": "jpeg"}
    return export(ExportConfig(**config, output=str(folder))), folder


def test_both_files_are_there_and_checked(files):
    result, folder = files
    assert result["jpeg"]["images"] == 20 and result["jpeg"]["agreement"] == 1
    assert result["jpeg"]["largest_difference"] < 0.01
    metadata = {entry.key: entry.value for entry in onnx.load(folder / "jpeg.onnx").metadata_props}
    assert metadata["input"] == "jpeg" and len(json.loads(metadata["classes"])) == 10
    assert OnnxClassifier(folder / "model.onnx").takes_pixels is False


@pytest.mark.parametrize("size", [(96, 96), (213, 320), (33, 47), (20, 25)])
@pytest.mark.parametrize("mode, kind", [("RGB", "JPEG"), ("RGB", "PNG"), ("L", "PNG")])
def test_jpegs_and_pngs_of_any_size(files, pictures, size, mode, kind):
    _, folder = files
    classifier = OnnxClassifier(folder / "model.onnx")
    data = [encoded(data, size, mode, kind) for _, data in pictures[::40]]
    found = compare_files(folder / "jpeg.onnx", classifier, data, MAX_PIXELS)
    assert found["images"] == 3 and found["agreement"] == 1 and found["largest_difference"] < 0.05


@pytest.mark.parametrize(
    "mode, interpolation", [("squash", "bicubic"), ("shortest", "bilinear"), ("squash", "bilinear")]
)
def test_other_preprocessing(tmp_path, pictures, mode, interpolation):
    """The pixels themselves, by a model that passes them on."""
    preprocess = replace(Preprocess(size=24), resize_mode=mode, interpolation=interpolation)
    image = onnx.helper.make_tensor_value_info("image", onnx.TensorProto.FLOAT, ["batch", 3, 24, 24])
    out = onnx.helper.make_tensor_value_info("out", onnx.TensorProto.FLOAT, ["batch", 3, 24, 24])
    graph = onnx.helper.make_graph([onnx.helper.make_node("Identity", ["image"], ["out"])], "pass", [image], [out])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=9)
    (tmp_path / "pass.onnx").write_bytes(with_decoder(model, preprocess).SerializeToString())
    session = open_with_decoder(tmp_path / "pass.onnx")
    for size in ((300, 200), (31, 90)):
        data = encoded(pictures[0][1], size)
        (found,) = session.run(None, {FILE: np.frombuffer(data, np.uint8)})
        mean, std = (np.array(values).reshape(3, 1, 1) for values in (preprocess.mean, preprocess.std))
        levels = (found[0] * std + mean) * 255
        expected = EvalView(preprocess)(Image.open(io.BytesIO(data))).transpose(2, 0, 1)
        assert np.abs(levels - expected).max() < 1.01


def test_what_the_graph_cannot_know_is_left_out(pictures):
    data = pictures[0][1]
    assert is_plain(encoded(data, (40, 30)), MAX_PIXELS)
    turned = Image.Exif()
    turned[0x0112] = 6
    for other in (
        encoded(data, (40, 30), exif=turned.tobytes()),
        encoded(data, (40, 30), "CMYK"),
        encoded(data, (40, 30), "L"),
        encoded(data, (40, 30), "RGBA", "PNG"),
        encoded(data, (40, 30), "RGB", "GIF"),
        b"no picture",
    ):
        assert not is_plain(other, MAX_PIXELS)


def test_a_grey_jpeg_is_an_error_and_no_wrong_answer(files, pictures):
    session = open_with_decoder(files[1] / "jpeg.onnx")
    with pytest.raises(Exception, match="out of data bounds"):
        session.run(None, {FILE: np.frombuffer(encoded(pictures[0][1], (40, 30), "L"), np.uint8)})


def test_a_file_that_says_something_else_is_refused(files, pictures, tmp_path):
    _, folder = files
    classifier = OnnxClassifier(folder / "model.onnx")
    wrong = with_decoder(onnx.load(folder / "model.onnx"), replace(classifier.preprocess, mean=(0.9, 0.1, 0.5)))
    (tmp_path / "wrong.onnx").write_bytes(wrong.SerializeToString())
    with pytest.raises(ValueError, match="nothing was written"):
        compare_files(tmp_path / "wrong.onnx", classifier, [data for _, data in pictures[:10]], MAX_PIXELS)
    with pytest.raises(ValueError, match="none of the images is a plain JPEG or PNG"):
        compare_files(folder / "jpeg.onnx", classifier, [b"x"], MAX_PIXELS)


def test_it_needs_pictures(digits, tmp_path):
    with pytest.raises(ValueError, match="--input jpeg needs --shards"):
        ExportConfig(model=digits.adapted, output=str(tmp_path), input="jpeg")
