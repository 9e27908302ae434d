"""`must predict --embeddings`: PyTorch's features, row by row, whoever does which part."""

import csv
import json
import shutil
from types import SimpleNamespace

import numpy as np
import onnx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

import must
from must.config import PredictConfig
from must.data.format.index import load_index
from must.deploy.export.onnx import reference_embeddings
from must.deploy.predict.images import predict_images
from must.deploy.predict.parquet import Decoded, Run, Table
from must.deploy.predict.session import OnnxClassifier
from must.method.model.bundle import load_bundle
from tests.deploy.predict.test_predict_shards import contents, damaged_copy
from tests.evaluation.digits import pixels_of

HALF = 3e-4  # of a number below 1 in half precision, beside the arithmetic's 1e-5


def label(model, shards, output, **options):
    values = {"model": str(model), "shards": shards, "output": str(output), "embeddings": True, "workers": 1}
    return predict_images(PredictConfig(**values | options))


def rows_of(folder):
    """{(split, source): row} of all files."""
    tables = [(path.name.split("-")[1], pq.read_table(path)) for path in sorted(folder.glob("*.parquet"))]
    return {(split, row["source"]): row for split, table in tables for row in table.to_pylist()}


@pytest.fixture(scope="module")
def features(digits):
    """PyTorch's, float32 [64], of every image, by split and name in the source."""
    bundle = load_bundle(digits.adapted)
    found = {}
    for split in ("train", "test"):
        paths = sorted((digits.images / split).rglob("*.png"))
        values = reference_embeddings(bundle, pixels_of(bundle, [Image.open(path) for path in paths]))
        found |= {
            (split, str(path.relative_to(digits.images / split))): row for path, row in zip(paths, values, strict=True)
        }
    return found


@pytest.fixture(scope="module")
def alone(digits, embedded, tmp_path_factory):
    """The folder that one program writes."""
    folder = tmp_path_factory.mktemp("alone")
    assert label(embedded, digits.shards, folder) == {"images": 270, "unreadable": 0}
    return folder


def test_two_parts_give_pytorchs_features_row_by_row(digits, embedded, features, alone, tmp_path):
    for part in ("2/2", "1/2"):
        label(embedded, digits.shards, tmp_path, part=part, workers=2)
    assert contents(tmp_path) == contents(alone)
    rows = rows_of(tmp_path)
    assert rows.keys() == features.keys() and len(rows) == 270
    for name, expected in features.items():
        np.testing.assert_allclose(rows[name]["embedding"], expected, atol=HALF)


def test_the_other_columns_are_those_of_a_file_without(digits, exported, alone, tmp_path):
    label(exported[1], digits.shards, tmp_path, embeddings=False)
    for path in sorted(tmp_path.glob("*.parquet")):
        table, plain = pq.read_table(alone / path.name), pq.read_table(path)
        assert table.column_names == [*plain.column_names, "embedding"]
        for name in set(plain.column_names) - {"probability", "margin"}:
            assert table[name] == plain[name]
        for name in ("probability", "margin"):
            np.testing.assert_allclose(table[name].to_numpy(), plain[name].to_numpy(), atol=1e-6)


def test_the_column_is_compact(alone):
    """Half floats without dictionary and statistics."""
    path = alone / "predictions-train-000000.parquet"
    assert pq.read_schema(path).field("embedding").type == pa.list_(pa.float16())
    group = pq.ParquetFile(path).metadata.row_group(0)
    columns = {group.column(number).path_in_schema: group.column(number) for number in range(group.num_columns)}
    embedding = columns["embedding.list.element"]
    assert "RLE_DICTIONARY" not in embedding.encodings and embedding.statistics is None
    assert embedding.num_values == 64 * 64 and embedding.total_uncompressed_size < 2.2 * 64 * 64
    assert columns["class"].statistics is not None and "RLE_DICTIONARY" in columns["class"].encodings


def test_rows_that_wait_are_half_floats():
    """No Python object a number, and nothing else of the batch is kept."""
    table = Table(["a", "b"], Run("m", "i", "", 1, 0.0, embeddings=True))
    embedding = np.ones((32, 512), np.float32)
    before = pa.total_allocated_bytes()
    for _ in range(20):
        batch = [Decoded("k", "s", np.zeros(1), "") for _ in range(32)]
        table.add(batch, np.full((32, 2), 0.5, np.float32), embedding)
    kept = sum(batch.column("embedding").nbytes for batch in table.batches)
    assert kept <= 640 * (2 * 512 + 8) and pa.total_allocated_bytes() - before < 640 * (2 * 512 + 400)


@pytest.mark.parametrize("rows", [0, 31, 3072])
def test_however_many_rows_a_shard_has_they_are_all_there(tmp_path, rows):
    """In order, in batches of 31, every seventh without an image."""
    table = Table(["a", "b"], Run("m", "i", "", 1, 0.0, embeddings=True))
    decoded = [Decoded(str(n), "s", np.zeros(1) if n % 7 else None, "" if n % 7 else "x") for n in range(rows)]
    for start in range(0, rows, 31):
        batch = decoded[start : start + 31]
        numbers = [float(item.key) for item in batch if item.pixels is not None]
        probability = np.tile(np.array([[0.25, 0.75]], np.float32), (len(numbers), 1))
        table.add(batch, probability, np.array(numbers, np.float32)[:, None] / [[1, 2]])
    table.write(str(tmp_path / "x.parquet"), SimpleNamespace(name="x.tar", sha256="s"))
    found = pq.read_table(tmp_path / "x.parquet").to_pylist()
    assert [row["key"] for row in found] == [str(n) for n in range(rows)]
    assert [row["embedding"] for row in found] == [
        [np.float16(n), np.float16(n / 2)] if n % 7 else None for n in range(rows)
    ]


def test_an_image_that_cannot_be_decoded_has_none(digits, embedded, features, tmp_path):
    shards = damaged_copy(digits.shards, tmp_path / "shards")
    name = load_index(shards).shards[0]
    label(embedded, shards, tmp_path / "out", split=name.split)
    rows = pq.read_table(tmp_path / "out" / f"predictions-{name.name.removesuffix('.tar')}.parquet").to_pylist()
    assert [number for number, row in enumerate(rows) if row["embedding"] is None] == [2] and rows[2]["reason"]
    np.testing.assert_allclose(rows[3]["embedding"], features[name.split, rows[3]["source"]], atol=HALF)


def test_a_model_without_embeddings_is_one_line(digits, exported, tmp_path):
    for values in (
        {"shards": digits.shards, "output": str(tmp_path / "out")},
        {"images": [str(digits.images / "test/zero")], "output": str(tmp_path / "out.jsonl")},
    ):
        with pytest.raises(ValueError, match="gives no embeddings; export it again with `must export --embeddings`"):
            predict_images(PredictConfig(model=str(exported[1]), embeddings=True, **values))
    assert not list(tmp_path.iterdir())


def test_files_with_and_without_are_of_two_runs(digits, embedded, tmp_path):
    label(embedded, digits.shards, tmp_path, split="test", part="1/2")
    with pytest.raises(ValueError, match=r"run\.json is of another run: its embeddings is 'True', here it is 'False'"):
        label(embedded, digits.shards, tmp_path, split="test", part="2/2", embeddings=False)
    (tmp_path / "run.json").unlink()  # each file tells too
    with pytest.raises(ValueError, match=r"parquet is of another run: its embeddings is 'True', here it is 'False'"):
        label(embedded, digits.shards, tmp_path, split="test", part="1/2", embeddings=False)


def test_a_run_from_before_there_were_any_goes_on(digits, exported, tmp_path):
    label(exported[1], digits.shards, tmp_path, split="test", part="1/2", embeddings=False)
    run = json.loads((tmp_path / "run.json").read_text())
    assert run.pop("embeddings") is False
    (tmp_path / "run.json").write_text(json.dumps(run))
    assert label(exported[1], digits.shards, tmp_path, split="test", part="2/2", embeddings=False)["images"] == 56
    with pytest.raises(ValueError, match="its embeddings is 'False', here it is 'True'"):
        Run(**run, embeddings=True).require_same(run, "run.json")


def test_single_images(digits, embedded, features, tmp_path, capsys):
    images, output = [str(digits.images / "test/zero")], tmp_path / "found.jsonl"
    predict_images(PredictConfig(model=str(embedded), images=images, output=str(output), embeddings=True, abstain=0.9))
    classifier = OnnxClassifier(embedded / "model.onnx")
    predictions = must.predict(model=str(embedded), images=images, embeddings=True).predictions
    lines = [json.loads(line) for line in output.read_text().splitlines()]
    assert len(lines) == len(predictions) > 5 and list(lines[0]) == ["image", "abstained", "predictions", "embedding"]
    for line, found in zip(lines, predictions, strict=True):
        name = ("test", line["image"].removeprefix(f"{digits.images}/test/"))
        assert found.embedding.shape == (classifier.dimensions,) and found.embedding.dtype == np.float32
        assert np.array_equal(np.array(line["embedding"], np.float32), found.embedding), "all digits are there"
        np.testing.assert_allclose(found.embedding, features[name], atol=1e-5)
    plain = must.predict(model=str(embedded), images=images).predictions
    assert all(found.embedding is None for found in plain)


def test_where_there_is_no_room_for_them(digits, embedded, tmp_path):
    images = [str(digits.images / "test/zero")]
    with pytest.raises(ValueError, match=r"a CSV file holds no embeddings; give a name that ends in \.jsonl"):
        PredictConfig(model=str(embedded), images=images, output=str(tmp_path / "x.csv"), embeddings=True)
    with pytest.raises(ValueError, match=r"a table on the terminal holds none; give --output FILE\.jsonl"):
        predict_images(PredictConfig(model=str(embedded), images=images, embeddings=True))
    predict_images(PredictConfig(model=str(embedded), images=images, output=str(tmp_path / "x.csv")))
    assert list(csv.DictReader((tmp_path / "x.csv").open()).fieldnames) == ["image", "class", "probability"]


def test_fewer_embeddings_than_images_are_one_line(embedded, digits, tmp_path):
    """A file that says [batch, 64] and gives one row: nothing is read beyond it."""
    model = onnx.load(embedded / "model.onnx")
    rename(model, "embedding", "inner")
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([0]), "first"))
    model.graph.node.append(onnx.helper.make_node("Gather", ["inner", "first"], ["embedding"]))
    onnx.save(model, tmp_path / "model.onnx")
    with pytest.raises(ValueError, match=r"gives embeddings \[1, 64\] of 32 images, not of 64 numbers each") as error:
        label(tmp_path, digits.shards, tmp_path / "out")
    assert "\n" not in str(error.value) and not list(tmp_path.glob("out/*.parquet"))


def rename(model, before, after):
    for node in model.graph.node:
        for names in (node.input, node.output):
            names[:] = [after if name == before else name for name in names]


@pytest.mark.parametrize("fault", ["name", "rank", "third"])
def test_a_foreign_second_output_is_one_line(embedded, tmp_path, fault):
    shutil.copy(embedded / "model.onnx", tmp_path)
    model = onnx.load(tmp_path / "model.onnx")
    second = model.graph.output[1]
    if fault == "name":
        model.graph.node.append(onnx.helper.make_node("Identity", ["embedding"], ["feature"]))
        second.name = "feature"
    elif fault == "rank":
        second.type.tensor_type.shape.dim[1].Clear()
        second.type.tensor_type.shape.dim[1].dim_param = "any"
        rename(model, "embedding", "inner")
        rows = onnx.numpy_helper.from_array(np.array([0]), "rows")
        model.graph.initializer.append(rows)
        model.graph.node.append(onnx.helper.make_node("NonZero", ["inner"], ["places"]))
        model.graph.node.append(onnx.helper.make_node("Cast", ["places"], ["embedding"], to=1))
    else:
        model.graph.output.append(second)
    onnx.save(model, tmp_path / "model.onnx")
    with pytest.raises(ValueError, match=r"model\.onnx: (its embeddings are|expected one|onnxruntime cannot)") as error:
        OnnxClassifier(tmp_path / "model.onnx")
    assert "\n" not in str(error.value)
