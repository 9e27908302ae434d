"""Labelling an index of another program's tars: the rows of the same images packed by `must shard`."""

import pytest

from must.base import storage
from must.config import ShardConfig
from must.data.format.index import load_index
from must.data.shards.build import shard
from must.data.shards.in_place import make_index
from tests.data.format.test_in_place import foreign
from tests.data.shards.test_shard_gcs import upload
from tests.deploy.predict.test_predict_shards import contents, label, rows_of


def by_source(folder):
    return {row.pop("source"): {name: row[name] for name in row if name != "key"} for row in rows_of(folder)}


@pytest.fixture(scope="module")
def tars(tmp_path_factory):
    return foreign(tmp_path_factory.mktemp("foreign") / "tars")


def test_rows_are_those_of_the_images_packed(exported, tars, tmp_path):
    """One image a forward pass: others in it may change a float's last bits."""
    make_index(str(tars), str(tmp_path / "index"), workers=1)
    shard(ShardConfig(source=str(tars), output=str(tmp_path / "packed"), labels="csv", workers=1))
    for number in (2, 1):
        label(
            exported, str(tmp_path / "index"), tmp_path / "in place", batch_size=1, workers=number, part=f"{number}/2"
        )
    label(exported, str(tmp_path / "packed"), tmp_path / "rows", batch_size=1, workers=1)
    found = rows_of(tmp_path / "in place")
    assert {row["key"] for row in found} == {f"a/{number:05d}" for number in range(30)}
    assert by_source(tmp_path / "in place") == by_source(tmp_path / "rows")


def test_names_that_are_too_long_for_a_header(exported, tmp_path):
    (tmp_path / "tars").mkdir()
    import tarfile

    from tests import zoo

    (tmp_path / "a.png").write_bytes(zoo.encoded(zoo.picture(1)))
    names = [f"./{'x' * 40}/{'y' * 150}.png", f"{'ü' * 120}.png", "b.c.png"]
    with tarfile.open(tmp_path / "tars" / "x.tar", "w") as tar:
        for name in names:
            tar.add(tmp_path / "a.png", name)
    make_index(str(tmp_path / "tars"), workers=1)
    label(exported, str(tmp_path / "tars"), tmp_path / "rows", workers=1)
    found = rows_of(tmp_path / "rows")
    assert [row["source"] for row in found] == ["x.tar/" + name.removeprefix("./") for name in names]
    assert [row["key"] for row in found] == [f"{'x' * 40}/{'y' * 150}", "ü" * 120, "b"]


def test_a_bucket_of_tars(bucket_server, exported, tars, tmp_path):
    upload(tars, f"{bucket_server.uri}/tars")
    make_index(f"{bucket_server.uri}/tars", str(tmp_path / "index"), workers=1)
    label(exported, str(tmp_path / "index"), tmp_path / "rows", workers=1)
    assert len(rows_of(tmp_path / "rows")) == 30
    first = load_index(str(tmp_path / "index")).shards[0]
    storage.write_bytes(first.location(""), bytes(first.bytes))
    with pytest.raises(ValueError, match="is damaged: its sha256 is not the index's"):
        label(exported, str(tmp_path / "index"), tmp_path / "again", workers=1)


def test_texts_that_are_missing_or_another_shards_are_one_line(exported, tars, tmp_path):
    make_index(str(tars), str(tmp_path / "index"), workers=1)
    texts = sorted((tmp_path / "index").glob("*.jsonl"))
    texts[0].write_bytes(texts[1].read_bytes())
    with pytest.raises(ValueError, match=r"train-000000\.jsonl is damaged: its sha256 is not the index's") as error:
        label(exported, str(tmp_path / "index"), tmp_path / "rows", workers=1)
    assert "\n" not in str(error.value)
    assert not any(name.endswith(".parquet") for name in contents(tmp_path / "rows"))
