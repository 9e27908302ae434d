"""Parquet files: the same shards as from the files themselves, or one line."""

import json
import os
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from must.data.reader import ShardReader
from tests import zoo
from tests.data.shards.test_shard import refused, rejected, run, samples
from tests.data.shards.test_shard_gcs import upload
from tests.stores import Server

PICTURES = [zoo.encoded(zoo.picture(number)) for number in range(40)]
NAMES = [("cat", "a dog")[number % 2] for number in range(40)]


def write(path: Path, rows: slice = slice(None), /, **columns: Any) -> Path:
    """A file of a row group a seven rows, with the pictures as `image` unless other columns are given."""
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.table(columns or {"image": PICTURES[rows], "label": NAMES[rows]})
    pq.write_table(table, path, row_group_size=7)
    return path


def contents(output: Path | str, split: str = "train") -> dict[bytes, str | None]:
    return {data: content["label"] for data, content in samples(output, split).values()}


def test_a_table_gives_its_images_and_labels(tmp_path: Path) -> None:
    index = run(write(tmp_path / "a.parquet"), tmp_path / "out", labels="csv", samples_per_shard=16)
    assert contents(tmp_path / "out") == dict(zip(PICTURES, NAMES, strict=True))
    reader, numbers = ShardReader(str(tmp_path / "out"), "train"), list(range(40))
    names = [reader.description(number)["source"] for number in numbers]
    in_order = [names[position] for position in reader.sort_as_source(numbers, names)]
    assert in_order == [f"a.parquet/{row}" for row in numbers] != names
    assert index.labels == ("a dog", "cat") and [part.samples for part in index.shards] == [16, 16, 8]


@pytest.mark.parametrize("source", ["", "{jan,feb}/meta.parquet"])
def test_files_that_tables_in_several_folders_name_are_told_apart(tmp_path: Path, source: str) -> None:
    paths = [f"files/{number}" for number in range(3)]
    for month, first in (("jan", 0), ("feb", 3)):
        zoo.put(tmp_path / "in" / month, dict(zip(paths, PICTURES[first:], strict=False)))
    write(tmp_path / "in" / "jan" / "meta.parquet", path=paths)
    for listed in (paths[:1], paths):
        write(tmp_path / "in" / "feb" / "meta.parquet", path=listed)
        run(tmp_path / "in" / source, tmp_path / "out", append=True)
    found = samples(tmp_path / "out", "train")
    assert set(found) == {f"{month}/{path}" for month in ("jan", "feb") for path in paths}
    assert {data for data, _ in found.values()} == set(PICTURES[:6])


def test_tables_in_a_bucket(bucket_server: Server, tmp_path: Path) -> None:
    write(tmp_path / "in" / "deep" / "a.parquet", slice(20))
    write(tmp_path / "in" / "b.parquet", slice(20, None))
    zoo.fill(tmp_path / "in" / "images", 3)
    uri = bucket_server.uri + "/tables"
    names = [f"{uri}/x/{number}.jpg" for number in range(3)]
    upload(tmp_path / "in", uri)
    for prefix in (f"{uri}/deep", f"{uri}/b.parquet"):
        run(prefix, tmp_path / prefix.rpartition("/")[2], labels="csv", workers=2, samples_per_shard=8)
    assert contents(tmp_path / "deep") | contents(tmp_path / "b.parquet") == dict(zip(PICTURES, NAMES, strict=True))
    paths = ["images/00000.png", f"{uri}/images/00001.png", names[0]]
    upload(write(tmp_path / "list" / "paths.parquet", path=paths).parent, uri)
    run(f"{uri}/paths.parquet", tmp_path / "named", max_rejected=0.5)
    assert set(samples(tmp_path / "named", "train")) == set(paths[:2])
    assert rejected(tmp_path / "named") == {names[0]: "there is no such file"}


def test_sparks_folders_and_ranges(bucket_server: Server, tmp_path: Path) -> None:
    folder = tmp_path / "spark.parquet"
    write(folder / "part-00000-3f.parquet", slice(20))
    write(folder / "part-00001-3f.parquet", slice(20, None))
    (folder / "_SUCCESS").touch()
    upload(folder, bucket_server.uri + "/spark.parquet")
    for number, source in enumerate((str(folder), bucket_server.uri + "/spark.parquet")):
        run(source, tmp_path / str(number))
    run(f"{folder}/part-0000{{0..1}}-3f.parquet", tmp_path / "2")
    assert [set(contents(tmp_path / str(number))) for number in range(3)] == [set(PICTURES)] * 3
    for missing in (bucket_server.uri + "/no.parquet", f"{folder}/part-{{0..1}}.parquet", f"{folder}/no.parquet"):
        refused(missing, tmp_path / "no", "there is no such")


def test_rows_that_hold_no_image_are_set_aside(tmp_path: Path) -> None:
    zoo.fill(tmp_path / "deep", 2)
    struct = [
        {"bytes": PICTURES[5], "path": "cat/../\n\u202e.png"},
        {"bytes": None, "path": "deep/00000.png"},
        {"bytes": None, "path": str(tmp_path / "deep" / "00001.png")},
        {"bytes": None, "path": "https://example.org/x.jpg"},
        {"bytes": None, "path": "a\0.png"},
        {"bytes": None, "path": None},
        None,
        {"bytes": b"", "path": "empty.png"},
        {"bytes": os.urandom(1_200_000), "path": "huge.png"},
    ]
    write(tmp_path / "a.parquet", other=list(range(9)), picture=struct)
    run(tmp_path / "a.parquet", tmp_path / "out", max_rejected=1, max_file_mb=1, labels="folder", workers=2)
    found = {name: content["label"] for name, (_, content) in samples(tmp_path / "out", "train").items()}
    second = str(tmp_path / "deep" / "00001.png")
    assert found == {"a.parquet/0/cat/../\n\u202e.png": "..", "deep/00000.png": "deep", second: "deep"}
    assert rejected(tmp_path / "out") == {
        "https://example.org/x.jpg": "only local paths and gs://, s3:// and az:// are read",
        "a\0.png": "no name that a file can have",
        "a.parquet/5": "no image in this row",
        "a.parquet/6": "no image in this row",
        "a.parquet/7/empty.png": "no image in this row",
        "a.parquet/8/huge.png": "more than 1000000 bytes",
    }


def test_columns_by_name_and_by_type(tmp_path: Path) -> None:
    pictures = pa.array(PICTURES[:3], pa.large_binary())
    labels = pa.array(["x", None, ""]).dictionary_encode()
    write(tmp_path / "a.parquet", thumb=[b"1", b"2", b"3"], pixels=pictures, kind=labels, label=[1, 2, 3])
    out = tmp_path / "out"
    refused(tmp_path / "a.parquet", out, r"--image-column; its columns are thumb, pixels, kind, label")
    options = {"image_column": "pixels", "labels": "csv"}
    run(tmp_path / "a.parquet", tmp_path / "numbers", **options)
    assert contents(tmp_path / "numbers") == dict(zip(PICTURES, ("1", "2", "3"), strict=False))
    run(tmp_path / "a.parquet", tmp_path / "texts", label_column="kind", **options)
    assert contents(tmp_path / "texts") == dict(zip(PICTURES, ("x", None, None), strict=False))
    for column, message in (("pixls", "no column 'pixls'"), ("label", "the column 'label' is of type int64")):
        refused(tmp_path / "a.parquet", out, message, image_column=column)
    refused(tmp_path / "a.parquet", out, "the column 'thumb' is of type binary", label_column="thumb", **options)
    write(tmp_path / "b.parquet", anything=PICTURES[:2])
    refused(tmp_path / "b.parquet", out, "no column of labels; name it with --label-column", labels="csv")
    run(tmp_path / "b.parquet", tmp_path / "unlabelled")
    assert len(contents(tmp_path / "unlabelled")) == 2


def test_splits_by_column_and_by_the_names_of_files(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", image=PICTURES[:4], split=["train", "test", "", None])
    run(tmp_path / "a.parquet", tmp_path / "columns")
    assert len(contents(tmp_path / "columns", "test")) == 1 and len(contents(tmp_path / "columns")) == 3
    write(tmp_path / "b.parquet", image=PICTURES[:1], split=["No Split"])
    refused(tmp_path / "b.parquet", tmp_path / "out", r"b.parquet row 0: 'No Split' is no split name")
    for name, rows in (("train-00000-of-00002", slice(9)), ("train-00001-of-00002", slice(9, 20))):
        write(tmp_path / "hub" / f"{name}.parquet", rows)
    run(tmp_path / "hub", tmp_path / "one", split={"train": 0.5, "test": 0.5})
    assert contents(tmp_path / "one", "test"), "of one split, --split makes more"
    write(tmp_path / "hub" / "test-00000-of-00001.parquet", slice(20, None))
    run(tmp_path / "hub", tmp_path / "two")
    assert set(contents(tmp_path / "two", "test")) == set(PICTURES[20:])


def test_what_datasets_saves_has_its_classes_names(tmp_path: Path) -> None:
    import datasets

    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "a dog"])})
    numbers = [number % 2 if number else -1 for number in range(40)]
    images = [{"bytes": data, "path": f"{number}.png"} for number, data in enumerate(PICTURES)]
    whole = datasets.Dataset.from_dict({"image": images, "label": numbers}, features=features)
    whole.to_parquet(tmp_path / "whole.parquet")
    run(tmp_path / "whole.parquet", tmp_path / "out", labels="csv", workers=2, samples_per_shard=9)
    assert contents(tmp_path / "out") == dict(zip(PICTURES, [None, *NAMES[1:]], strict=True))
    whole.save_to_disk(tmp_path / "saved")
    for source in (tmp_path / "saved", next((tmp_path / "saved").glob("*.arrow"))):
        message = rf"^--source {source}: Arrow files are not read; .* dataset.to_parquet\(FILE\)$"
        refused(source, tmp_path / "no", message)


def test_a_damaged_table_is_named(tmp_path: Path) -> None:
    write(tmp_path / "whole.parquet")
    data = (tmp_path / "whole.parquet").read_bytes()
    path = tmp_path / "bad.parquet"
    for cut in (0, 3, len(data) // 2, len(data) - 8, len(data) - 1):
        path.write_bytes(data[:cut])
        refused(path, tmp_path / "out", f"^--source {path}: the table is damaged.{{0,800}}$")
    path.write_bytes(data[:4] + bytes(len(data) - 300) + data[-296:])
    message = f"^--source {path}: (the table is damaged|no column with a known image name|no images).{{0,800}}$"
    refused(path, tmp_path / "out", message)


def test_without_pyarrow_one_line_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "a.parquet")
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    message = rf"^--source {tmp_path}/a.parquet: .*pip install 'must-clip\[parquet\]'"
    refused(tmp_path / "a.parquet", tmp_path / "out", message)


def test_labels_out_of_range_are_refused(tmp_path: Path) -> None:
    features = {"label": {"_type": "ClassLabel", "names": ["cat"]}}
    description = {"huggingface": json.dumps({"info": {"features": features}})}
    other = pa.table({"image": PICTURES[:1], "label": [1]}).replace_schema_metadata(description)
    pq.write_table(other, tmp_path / "b.parquet")
    message = "row 0: the label 1 is none of the table's 1 classes"
    refused(tmp_path / "b.parquet", tmp_path / "no", message, labels="csv")
