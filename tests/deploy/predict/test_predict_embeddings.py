"""`must predict --embeddings`: PyTorch's features, row by row, whoever does which part."""

import csv
import json
from types import SimpleNamespace

import numpy as np
import onnx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

import must
from must.config import PredictConfig
from must.deploy.export.onnx import reference_embeddings
from must.deploy.predict.images import predict_images
from must.deploy.predict.parquet import PACKED_ROWS, Decoded, Run, Table
from must.deploy.predict.session import OnnxClassifier
from must.method.model.bundle import load_bundle
from tests.deploy.predict.test_predict_shards import contents
from tests.evaluation.digits import pixels_of

HALF = 3e-4  # of a number below 1 in half precision, beside the arithmetic's 1e-5


def label(model, shards, output, **options):
    values = {"model": str(model), "shards": shards, "output": str(output), "embeddings": True, "workers": 1}
    return predict_images(PredictConfig(**values | options))


@pytest.fixture(scope="module")
def features(digits):
    """PyTorch's, float32 [64], of every image, by split and name in the source."""
    bundle = load_bundle(digits.adapted)
    found = {}
    for split in ("train", "test"):
        paths = sorted((digits.images / split).rglob("*.png"))
        values = reference_embeddings(bundle, pixels_of(bundle, [Image.open(path) for path in paths]))
        names = [str(path.relative_to(digits.images / split)) for path in paths]
        found |= {(split, name): row for name, row in zip(names, values, strict=True)}
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
    tables = [(path.name.split("-")[1], pq.read_table(path)) for path in tmp_path.glob("*.parquet")]
    rows = {(split, row["source"]): row for split, table in tables for row in table.to_pylist()}
    assert rows.keys() == features.keys() and len(rows) == 270
    for name, expected in features.items():
        np.testing.assert_allclose(rows[name]["embedding"], expected, atol=HALF)


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
    kept = sum(batch.column("embedding").nbytes for batch in table.waiting)
    assert kept <= 640 * (2 * 512 + 8) and pa.total_allocated_bytes() - before < 640 * (2 * 512 + 400)


@pytest.mark.parametrize("rows", [0, 31, 3 * PACKED_ROWS])
def test_however_many_rows_a_shard_has_they_are_all_there(tmp_path, rows):
    """In order, in batches of 31, every seventh without an image; some are put together before they are written."""
    table = Table(["a", "b"], Run("m", "i", "", 1, 0.0, embeddings=True))
    decoded = [Decoded(str(n), "s", np.zeros(1) if n % 7 else None, "" if n % 7 else "x") for n in range(rows)]
    for start in range(0, rows, 31):
        batch = decoded[start : start + 31]
        numbers = [float(item.key) for item in batch if item.pixels is not None]
        probability = np.tile(np.array([[0.25, 0.75]], np.float32), (len(numbers), 1))
        table.add(batch, probability, np.array(numbers, np.float32)[:, None] / [[1, 2]])
    assert len(table.packed) == (2 if rows > PACKED_ROWS else 0)  # of 34 batches, the first number that is enough
    table.write(str(tmp_path / "x.parquet"), SimpleNamespace(name="x.tar", sha256="s"))
    found = pq.read_table(tmp_path / "x.parquet").to_pylist()
    assert [row["key"] for row in found] == [str(n) for n in range(rows)]
    expected = [[np.float16(n), np.float16(n / 2)] if n % 7 else None for n in range(rows)]
    assert [row["embedding"] for row in found] == expected


def test_a_model_without_embeddings_is_one_line(digits, exported, tmp_path):
    for values in (
        {"shards": digits.shards, "output": str(tmp_path / "out")},
        {"images": [str(digits.images / "test/zero")], "output": str(tmp_path / "out.jsonl")},
    ):
        with pytest.raises(ValueError, match="gives no embeddings; export it again with `must export --embeddings`"):
            predict_images(PredictConfig(model=str(exported[1]), embeddings=True, **values))
    assert not list(tmp_path.iterdir())


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


def with_another_second_output(embedded, folder, kind, inputs=(), name="embedding", **attributes):
    """Writes the model into the folder; its embeddings go through one more operation."""
    model = onnx.load(embedded / "model.onnx")
    for node in model.graph.node:
        for names in (node.input, node.output):
            names[:] = ["inner" if found == "embedding" else found for found in names]
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([0]), "first"))
    model.graph.node.append(onnx.helper.make_node(kind, ["inner", *inputs], [name], **attributes))
    model.graph.output[1].name = name
    model.graph.output[1].type.tensor_type.elem_type = attributes.get("to", onnx.TensorProto.FLOAT)
    onnx.save(model, folder / "model.onnx")


def test_fewer_embeddings_than_images_are_one_line(embedded, digits, tmp_path):
    """A file that says [batch, 64] and gives one row: nothing is read beyond it."""
    with_another_second_output(embedded, tmp_path, "Gather", ["first"])
    with pytest.raises(ValueError, match=r"gives embeddings \[1, 64\] of 32 images, not of 64 numbers each") as error:
        label(tmp_path, digits.shards, tmp_path / "out")
    assert "\n" not in str(error.value) and not list(tmp_path.glob("out/*.parquet"))


@pytest.mark.parametrize(
    "kind, values, message",
    [
        ("Identity", {"name": "feature"}, "expected one input and one output, and at most 'embedding' beside it"),
        ("Cast", {"to": onnx.TensorProto.DOUBLE}, r"its embeddings are tensor\(double\) .*, not float32 \[N, D\]"),
    ],
)
def test_a_foreign_second_output_is_one_line(embedded, tmp_path, kind, values, message):
    with_another_second_output(embedded, tmp_path, kind, **values)
    with pytest.raises(ValueError, match=rf"model\.onnx: {message}") as error:
        OnnxClassifier(tmp_path / "model.onnx")
    assert "\n" not in str(error.value)
