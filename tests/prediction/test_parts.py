"""`must predict --part` and `--known`: parts that are killed, continued, joined; only what is new; kinds of tables."""

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import pytest

import must
from must.config import PredictConfig
from must.prediction import predict as labelling
from must.prediction.images import Found
from must.prediction.predict import predict
from must.prediction.stream import read_batches
from must.prediction.writer import read_table
from tests.common import one_line
from tests.data.shards.test_shard_gcs import upload
from tests.zoo import put

PARTS = 3
KILLED = """
import os, signal, sys
from must.prediction import predict
rank = predict.rank_batch
def killing(*arguments):
    os.kill(os.getpid(), signal.SIGKILL)
predict.rank_batch = killing
from must.api.cli import main
main(sys.argv[1:])
"""


@pytest.fixture(scope="module")
def folder(digits, tmp_path_factory):
    """118 pictures, one of them with a line break in its name, a damaged one, and another file."""
    source = tmp_path_factory.mktemp("label") / "in"
    shutil.copytree(digits.images / "test", source)
    first, *_, last = sorted(source.rglob("*.png"))
    first.rename(first.with_name("a\nb.png"))
    last.unlink()
    put(source, {"cut.png": b"\x89PNG cut", "notes.txt": b"x"})
    return source


def label(model, source, output, **options):
    return predict(PredictConfig(model=str(model), images=[str(source)], output=str(output), **options))


def label_parts(model, source, output, **options):
    return [label(model, source, output, part=f"{number}/{PARTS}", **options) for number in range(1, PARTS + 1)]


def rows_of(output):
    found = list(read_table(str(output)))
    rows = {row["image"]: row for row in found}
    assert len(rows) == len(found), "every name once"
    return rows


def bytes_of(output):
    return {path.name: path.read_bytes() for path in Path(f"{output}.parts").iterdir()}


@pytest.mark.parametrize("ending", ["parquet", "csv", "jsonl"])
def test_parts_are_joined_to_what_one_run_labels(folder, exported, tmp_path, ending, capsys):
    output = tmp_path / f"out.{ending}"
    with one_line("no such file"):
        label(exported[1], tmp_path / "nowhere", output, part="1/3")
    counts = label_parts(exported[1], folder, output)
    assert sum(one["images"] for one in counts) == 119 and sum(one["unreadable"] for one in counts) == 1
    assert capsys.readouterr().err.count("cut.png: ") == 1
    before = bytes_of(output)
    assert label_parts(exported[1], folder, output) == [{"images": 0, "unreadable": 0}] * PARTS
    assert bytes_of(output) == before
    assert label(exported[1], folder, output)["images"] == 120
    joined = rows_of(output)
    assert joined.keys() == {str(path) for path in folder.rglob("*.png")}
    assert f"{folder}/eight/a\nb.png" in joined
    plain = must.predict(model=exported[1], images=[str(folder)]).predictions
    for one in plain:
        assert joined[one.image]["class"] == one.name and not joined[one.image].get("error")
    cut = joined[f"{folder}/cut.png"]
    assert not cut.get("class") and "image" in cut["error"]
    with one_line("has parts of 3; go on with these"):
        label(exported[1], folder, output, part="1/2")
    (tmp_path / f"out.{ending}.parts" / f"part-00002-of-00003.{ending}").unlink()
    with one_line("lacks 1 of 3 parts: --part 2/3"):
        label(exported[1], folder, output)
    assert rows_of(output) == joined


def test_a_killed_part_leaves_nothing_and_is_labelled_to_the_same_bytes(folder, exported, tmp_path):
    for place in ("undisturbed", "killed"):
        label_parts(exported[1], folder, tmp_path / f"{place}.parquet")
    expected, parts = bytes_of(tmp_path / "undisturbed.parquet"), tmp_path / "killed.parquet.parts"
    (parts / "part-00002-of-00003.parquet").unlink()
    command = [sys.executable, "-c", KILLED, "predict", folder, "--model", exported[1], "--part", "2/3"]
    killed = subprocess.run([*command, "--output", tmp_path / "killed.parquet"], capture_output=True)
    assert killed.returncode == -signal.SIGKILL
    assert [path.name for path in parts.glob("part-*")] == [name for name in expected if "00002" not in name]
    assert [one["images"] > 0 for one in label_parts(exported[1], folder, tmp_path / "killed.parquet")] == [0, 1, 0]
    assert {name: data for name, data in bytes_of(tmp_path / "killed.parquet").items() if name in expected} == expected


def test_only_what_is_new_or_changed_in_a_bucket(folder, exported, bucket_server, tmp_path):
    folder = shutil.copytree(folder, tmp_path / "in")
    named = next(folder.rglob("a\n*"))
    named.rename(named.with_name("a b.png"))  # the test server of S3 takes no name with a line break
    source, output = f"{bucket_server.uri}/in", f"{bucket_server.uri}/out.parquet"
    upload(folder, source)
    label_parts(exported[1], source, output)
    names = sorted(path for path in folder.rglob("*.png") if path.name != "cut.png")
    must.base.storage.write_bytes(f"{source}/new.png", names[0].read_bytes())
    must.base.storage.write_bytes(f"{source}/cut.png", names[1].read_bytes())
    must.base.storage.delete(f"{source}/{names[5].relative_to(folder)}")
    aside = f"{bucket_server.uri}/new.csv"
    assert label(exported[1], source, aside, known=output)["images"] == 2
    assert rows_of(aside).keys() == {f"{source}/new.png", f"{source}/cut.png"}
    assert sum(one["images"] for one in label_parts(exported[1], source, output)) == 2
    label(exported[1], source, output)
    rows = rows_of(output)
    assert len(rows) == 120 and not any(row.get("error") for row in rows.values())
    assert f"{source}/{names[5].relative_to(folder)}" not in rows
    with one_line("elsewhere: no images in there"):
        label(exported[1], f"{bucket_server.uri}/elsewhere", output, part="1/3")


def test_another_model_is_refused_or_labels_only_what_is_new(folder, exported, tmp_path):
    output, part = tmp_path / "out.csv", tmp_path / "out.csv.parts/part-00001-of-00003.csv"
    label_parts(exported[1], folder, output)
    before = part.read_bytes()
    model = onnx.load(exported[1] / "model.onnx")
    classes = next(entry for entry in model.metadata_props if entry.key == "classes")
    classes.value = json.dumps([f"the {name}" for name in json.loads(classes.value)])
    onnx.save(model, other := tmp_path / "model.onnx")
    with one_line("was labelled by model [0-9a-f]{12}, this is [0-9a-f]{12} .or other classes"):
        label(other, folder, output, part="1/3")
    with one_line("has other columns"):
        label(exported[1], folder, output, part="1/3", top_k=2)
    assert part.read_bytes() == before
    shutil.copy(sorted(folder.rglob("*.png"))[5], folder / "added.png")
    counts = [one["images"] for one in label_parts(other, folder, output, known=str(output))]
    assert sorted(counts) == [0, 0, 1]
    label(other, folder, output)
    models = {}
    for name, row in rows_of(output).items():
        models.setdefault(row["model"], []).append(name)
        assert row["class"].startswith("the ") == name.endswith("added.png")
    assert sorted(map(len, models.values())) == [1, 120]
    assert sum(one["images"] for one in label_parts(other, folder, output, relabel=True)) == 119
    (folder / "added.png").unlink()
    label_parts(other, folder, output, known=str(output))
    label(other, folder, output)
    assert {row["class"][:4] for row in rows_of(output).values() if row["class"]} == {"the "}


@pytest.fixture
def few(digits, tmp_path):
    """12 pictures."""
    for path in sorted((digits.images / "test").rglob("*.png"))[::10]:
        put(tmp_path / "few", {f"{path.parent.name}-{path.name}": path.read_bytes()})
    return tmp_path / "few"


def test_parts_of_another_number_hold_all_rows_also_beside_the_joined_table(exported, few, tmp_path):
    output = tmp_path / "out.csv"
    label_parts(exported[1], few, output)
    label(exported[1], few, output)
    shutil.rmtree(f"{output}.parts")
    counts = [label(exported[1], few, output, part=f"{number}/2", known=f"file://{output}") for number in (1, 2)]
    assert sum(one["images"] for one in counts) == 12
    label(exported[1], few, output)
    assert len(rows_of(output)) == 12
    with one_line("--known .*out.csv: this table is in parts; give --part I/N"):
        label(exported[1], few, output, known=str(output))
    with one_line("--relabel labels rows of other models again, --known .* keeps them"):
        label(exported[1], few, output, known=str(output), part="1/2", relabel=True)
    assert len(rows_of(output)) == 12


def test_a_folder_that_is_empty_takes_no_rows_from_a_table(exported, few, tmp_path, caplog):
    output, second = tmp_path / "out.csv", tmp_path / "second"
    second.mkdir()
    (few / sorted(path.name for path in few.iterdir())[0]).rename(second / "moved.png")

    def label_both(**options):
        images = [str(few), str(second)]
        return predict(PredictConfig(model=str(exported[1]), images=images, output=str(output), **options))

    for options in ({"known": str(output)}, {"part": "1/1"}):
        place = tmp_path / "out.csv.parts/part-00001-of-00001.csv" if "part" in options else output
        label_both(**options)
        before = place.read_bytes()
        (second / "moved.png").rename(tmp_path / "aside.png")  # as a disk that is not mounted
        with one_line("second: .*; with --part or --known that is an error"):
            label_both(**options)
        assert place.read_bytes() == before and len(rows_of(place)) == 12
        caplog.clear()
        assert label(exported[1], few, output, **options)["images"] == 0
        assert "1 left out" in caplog.text and len(rows_of(place)) == 11
        (tmp_path / "aside.png").rename(second / "moved.png")


def test_joined_parts_have_the_same_columns(exported, few, tmp_path):
    output = tmp_path / "out.csv"
    for number in (1, 2, 3):
        label(exported[1], few, output, part=f"{number}/3", top_k=3 if number == 2 else 1)
    with one_line("part-00002-of-00003.csv: has other columns than other parts"):
        label(exported[1], few, output)
    assert not output.exists()
    (tmp_path / "out.csv.parts/part-00001-of-00003.csv").write_text("image,version\nx,1\n")
    with one_line("has no columns image, version and model; .* or damaged"):
        label(exported[1], few, output, part="1/3")


def test_new_pictures_that_are_all_damaged_become_rows_of_a_table(exported, few, tmp_path):
    output = tmp_path / "out.csv"
    label(exported[1], few, output, known=str(output))
    put(few, {f"z{number}.png": b"\x89PNG cut" for number in range(6)})
    assert label(exported[1], few, output, known=str(output)) == {"images": 0, "unreadable": 6}
    assert sum(bool(row["error"]) for row in rows_of(output).values()) == 6
    assert label(exported[1], few, output, known=str(output)) == {"images": 0, "unreadable": 0}, "not tried again"


def test_archives_tables_lists_and_shards_are_labelled_as_they_are(folder, exported, tmp_path):
    """By processes, which give what threads give."""
    must.shard(source=str(folder), output=str(tmp_path / "shards"), max_rejected=1, samples_per_shard=50)
    shutil.make_archive(str(tmp_path / "photos"), "zip", folder)
    names = sorted(path for path in folder.rglob("*.png") if "\n" not in path.name)
    (tmp_path / "list.csv").write_text("image\n" + "".join(f"{path}\n" for path in names))
    plain = {one.image: one.probability for one in must.predict(model=exported[1], images=[str(folder)]).predictions}
    for place, number in (("shards", 119), ("photos.zip", 119), ("list.csv", 118)):
        found = must.predict(model=exported[1], images=[str(tmp_path / place)], workers=2)
        assert found.images == number
        assert (
            sorted(one.probability for one in found.predictions)[:50]
            == pytest.approx(sorted(plain.values())[:50], abs=1e-5)
            or place == "list.csv"
        )
    zipped = must.predict(model=exported[1], images=[str(tmp_path / "photos.zip")])
    assert zipped.predictions[0].image.startswith(f"{tmp_path}/photos.zip/")
    assert {one.image.replace(f"{tmp_path}/photos.zip", str(folder)) for one in zipped.predictions} == plain.keys()


def test_embeddings_and_row_groups(digits, exported, folder, tmp_path, monkeypatch):
    pyarrow_parquet = pytest.importorskip("pyarrow.parquet")
    monkeypatch.setattr("must.prediction.writer.ROWS", 50)
    with one_line("--embeddings: .* gives none; make it with `must export --embeddings`"):
        label(exported[1], folder, tmp_path / "out.parquet", embeddings=True)
    label(digits.adapted, folder, tmp_path / "out.parquet", embeddings=True, top_k=3)
    with one_line("--embeddings needs --output FILE.parquet"):
        label(digits.adapted, folder, tmp_path / "out.csv", embeddings=True)
    table = pyarrow_parquet.ParquetFile(tmp_path / "out.parquet")
    assert table.metadata.num_row_groups == 3
    rows = table.read().to_pylist()
    lengths = [sum(value * value for value in row["embedding"]) for row in rows if row["embedding"]]
    assert len(lengths) == 119 and lengths == pytest.approx([1.0] * 119, abs=1e-4)
    assert list(rows[0])[:5] == ["image", "class", "probability", "class_2", "probability_2"]


def test_names_are_taken_from_a_listing_while_it_goes_on(digits, exported, monkeypatch):
    """Of a listing without an end, images are labelled."""
    picture = str(next((digits.images / "test").rglob("*.png")))
    taken = []

    def endless(*_):
        while True:
            taken.append(1)
            yield Found(picture)

    monkeypatch.setattr(labelling, "find_images", endless)

    def take(prediction):
        raise KeyError

    with pytest.raises(KeyError):
        predict(PredictConfig(model=str(exported[1]), images=[picture], workers=2), take)
    assert len(taken) < 20_000


def read_slowly(found, view):
    """The first image takes longer than all others."""
    if found.name == "0":
        time.sleep(0.3)
    return (None, "odd") if int(found.name) % 2 else (np.full((2, 2, 3), int(found.name), np.uint8), "")


def test_a_slow_batch_is_waited_for_and_none_is_lost():
    found = [Found(str(number)) for number in range(101)]
    batches = list(read_batches(found, None, read_slowly, 2, 2))
    assert [one for names, _, _ in batches for one in names] == found
    assert [int(pixels[0, 0, 0, 0]) for _, pixels, _ in batches] == [*range(0, 101, 2)]
    assert [reason for _, _, reasons in batches for reason in reasons] == ["", "odd"] * 50 + [""]
