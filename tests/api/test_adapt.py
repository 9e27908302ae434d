"""`must.adapt`: every kind of input, what comes back, going on, and refusing."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
import torch.nn.functional as F
import yaml
from PIL import ExifTags, Image

import must
from must.api import cli
from must.api.demo import CLASSES, find_assets
from must.api.inputs import (
    convert_image,
    describe_folders,
    list_folder_names,
    make_entries,
    read_classes,
    record_words,
    rename_classes,
    to_source,
)
from must.api.model import Adapted
from must.data.augment import normalize
from must.data.image.decode import decode
from must.model.bundle import load_bundle
from must.model.description import get_preprocess
from tests.api.conftest import PROMPTS
from tests.common import one_line, read_csv
from tests.evaluation.digits import decode_pixels
from tests.zoo import turned

SETTINGS = {"train": "yes", "preset": "digits", "epochs": 2, "batch_size": 50, "workers": 0, "device": "cpu"}


def inputs(digits, output, **changes):
    given = {"images": digits.images / "train", "classes": PROMPTS, "model": find_assets(), "output": output}
    return given | {"test_images": digits.images / "test"} | SETTINGS | changes


@pytest.fixture(scope="module")
def adapted(digits, tmp_path_factory):
    return must.adapt(**inputs(digits, tmp_path_factory.mktemp("adapted") / "work"))


def test_it_adapts_and_measures(adapted, digits):
    assert adapted.metrics["images"] == 120 and 0.5 < adapted.metrics["adapted"]["top1"] < 1
    assert adapted.classes == list(CLASSES) and (adapted.bundle / "model.json").exists()
    assert adapted.report.name == "report.html" and adapted._repr_html_().startswith("<iframe srcdoc=")
    assert Adapted(adapted.output) == adapted
    rows = read_csv(adapted.labels)
    assert adapted.to_frame()["class"].tolist() == [row["class"] for row in rows]
    assert len(rows) == adapted.metrics["refined"]["images"] == 150 and {row["class"] for row in rows} <= {*CLASSES}
    assert "The labels of your 150 pictures" in adapted.report.read_text()
    named = re.findall(r"^\| `([\w/.]+)`", (adapted.output / "README.md").read_text(), re.MULTILINE)
    assert [name for name in named if (adapted.output / name).exists()] == [
        "labels/predictions.csv", "labels/folders.csv", "report/report.html", "model/",
    ]  # fmt: skip


def test_in_the_frame_names_stay_text(adapted, tmp_path):
    """A class "00" was the number 0, and "-1" had an apostrophe."""
    work = shutil.copytree(adapted.output, tmp_path / "work")
    file = work / "labels/predictions.csv"
    head, *lines = file.read_text().splitlines()
    names = ["00", "'-1", "none of these"]
    cells = [line.split(",") for line in lines[:3]]
    rows = [",".join([cell[0], name, *cell[2:]]) for cell, name in zip(cells, names, strict=True)]
    file.write_text("\n".join([head, *rows]) + "\n")
    frame = Adapted(work).to_frame()
    assert frame["class"].tolist() == ["00", "-1", "none of these"] and set(frame["by"]) == {"model"}
    assert frame["probability"].dtype == frame["similarity"].dtype == "float64"


def test_predictions_agree_with_the_report(adapted, digits):
    """Other kinds of images: tests/api/test_model.py."""
    paths = sorted(digits.images.glob("test/*/*.png"))
    right = sum(one.name == path.parent.name for one, path in zip(adapted.predict(paths), paths, strict=True))
    assert right / len(paths) == pytest.approx(adapted.metrics["adapted"]["top1"])


def test_the_card_for_a_hub_has_the_accuracy_without_the_memory(adapted, tmp_path):
    work = shutil.copytree(adapted.output, tmp_path / "work")
    metrics = json.loads((work / "report/metrics.json").read_text())
    metrics["tower"]["top1"] = 0.123  # else it may be equal
    (work / "report/metrics.json").write_text(json.dumps(metrics))
    cli.main(["export", str(work), "--to", "open_clip", "--output", str(tmp_path / "ours")])
    front = (tmp_path / "ours" / "README.md").read_text().split("---\n")[1]
    (result,) = yaml.safe_load(front)["model-index"][0]["results"]
    assert result["metrics"][0]["value"] == 0.123 != adapted.metrics["adapted"]["top1"]


def on_white(pixels):
    """RGB of RGBA, by the formula."""
    alpha = pixels[..., 3:].astype(float) / 255
    return np.rint(pixels[..., :3] * alpha + 255 * (1 - alpha)).astype(np.uint8)


def test_open_clips_model_ranks_as_the_bundle_does(adapted, digits):
    model, preprocess, classifier = adapted.to_open_clip()
    assert isinstance(model, open_clip.CLIP) and classifier.shape[1] == len(CLASSES)
    paths = sorted(digits.images.glob("test/*/*.png"))[:40]
    with torch.inference_mode():
        pixels = torch.stack([preprocess(Image.open(path)) for path in paths])
        best = (F.normalize(model.encode_image(pixels), dim=-1) @ classifier).argmax(1)
    bundle = load_bundle(str(adapted.bundle))
    views = torch.from_numpy(decode_pixels(bundle, [Image.open(path) for path in paths]))
    with torch.inference_mode():
        tower = bundle.model(normalize(views, get_preprocess(bundle.description))).argmax(1)
    assert torch.equal(best, tower), "as the model without its memory"
    clear = np.random.default_rng(0).integers(0, 256, (32, 32, 4), dtype=np.uint8)
    white = clear.copy()
    clear[4:28, 4:28, 3], white[4:28, 4:28] = 0, 255
    image = Image.fromarray(white[..., :3])
    image.getexif()[ExifTags.Base.Orientation] = 6
    assert torch.equal(preprocess(image), preprocess(image.transpose(Image.Transpose.ROTATE_270))), "upright"
    assert torch.equal(preprocess(Image.fromarray(clear)), preprocess(Image.fromarray(on_white(white)))), "not below it"


@pytest.mark.slow
def test_it_exports(adapted, tmp_path):
    assert Path(adapted.export(tmp_path / "onnx", limit=20).model).exists()


def test_numpys_texts_are_names_and_prompts(tmp_path):
    labels = np.array(["dog", "cat", "dog"])
    forms = (["cat", "dog"], list(np.unique(labels)), np.unique(labels), "cat, dog")
    plain, *others = map(read_classes, forms)
    assert record_words({"classes": np.unique(labels)}) == {"classes": ["cat", "dog"]}
    assert all(other == plain for other in others) and plain[:2] == ("", b"classes:\n- cat\n- dog\n")
    (tmp_path / "names.txt").write_text("cat\ndog\n")
    assert read_classes(tmp_path / "names.txt")[2] == plain[2], "the same names in another form are no change"
    prompts = {labels[0]: labels[1], "cat": list(labels)}
    assert make_entries(prompts) == [{"name": "dog", "prompts": ["cat"]}, {"name": "cat", "prompts": list(labels)}]
    assert read_classes(prompts)[1]
    assert record_words({"classes": {"dog": labels, "cat": "a"}}) == {"classes": {"dog": list(labels), "cat": "a"}}


def test_loaders_that_training_counts_itself_are_the_other_stages_default(digits, tmp_path):
    few = sorted(digits.images.glob("train/*/*.png"))[:12]
    given = inputs(digits, tmp_path / "work", images=few, test_images="", train="no", workers="auto")
    assert must.adapt(**given).metrics["images"] == 12


@pytest.mark.parametrize("flag", ["images", "test_images"])
def test_a_bucket_without_images_is_refused_by_its_uri(bucket_server, digits, tmp_path, flag):
    missing = f"{bucket_server.uri}/nothing"
    few = {"images": sorted(digits.images.glob("train/*/*.png"))[:12], "test_images": "", "train": "no"}
    with one_line(f"^{flag} {missing}: no images in there$"):
        must.adapt(**inputs(digits, tmp_path / "work", **few | {flag: missing}))


def test_class_names_from_folder_names(digits, tmp_path):
    assert list_folder_names(digits.images / "train") == sorted(CLASSES)
    for images in (tmp_path, [tmp_path / "a.png"], "gs://bucket/photos"):
        with pytest.raises(ValueError, match=r"^classes folders: "):
            must.adapt(images, classes="folders", output=tmp_path / "work")


def make_folders(root, *names):
    for name in names:
        (root / name).mkdir(parents=True)
    return root


def test_the_output_among_the_folders_is_no_class(tmp_path):
    images = make_folders(tmp_path, "cat", "dog", "work", ".cache")
    assert list_folder_names(images, str(images / "work")) == ["cat", "dog"]
    assert list_folder_names(f"{images}/", str(images / "cat" / "work")) == ["cat", "dog", "work"]


def test_folders_of_a_train_and_a_test_part_are_no_classes(tmp_path):
    images = make_folders(tmp_path / "parts", "Train/cat", "Train/dog", "val/cat")
    with one_line(f"^classes folders: Train, val are parts of a data set, and no classes; give .*{images / 'Train'}"):
        list_folder_names(images)
    assert list_folder_names(make_folders(tmp_path / "vehicles", "train", "test")) == ["test", "train"]
    deep = make_folders(tmp_path / "deep", "photos/cat", "photos/dog")
    with one_line(f"two folders at least, .*; if the classes are the folders in {deep / 'photos'}, give that one$"):
        list_folder_names(deep)


def test_the_names_of_folders_are_printed():
    assert describe_folders(["a\nb", "c"]) == "2 classes, named as the folders: a?b, c"
    assert describe_folders([str(number) for number in range(1_022)]).endswith(" 18, 19, and 1,002 more")


def test_a_class_is_found_by_its_name_in_another_form():
    rename = {"caf\xe9": "bar", "1": "one"}
    assert rename_classes(["cafe\u0301", 1, "cow"], rename, "") == ["bar", "one", "cow"]
    assert rename_classes({"cafe\u0301": ["a"], "cow": ["b"]}, rename, "") == {"bar": ["a"], "cow": ["b"]}


def test_folders_have_the_new_name_of_a_class_already(digits):
    images = digits.images / "train"
    assert rename_classes("folders", {"eins": "one"}, images) == "folders"
    with one_line("^--rename: the folder 'one' has the old name; rename it, too, to 'eins'$"):
        rename_classes("folders", {"one": "eins"}, images)


def pictures(count=4):
    chance = np.random.default_rng(0)
    return [Image.fromarray(chance.integers(0, 256, (10, 12, 3), dtype=np.uint8)) for _ in range(count)]


def of_torch(images):
    pixels = torch.stack([torch.from_numpy(np.asarray(image) / 255).permute(2, 0, 1).float() for image in images])
    return torch.utils.data.TensorDataset(pixels, torch.full((len(images),), 7))


def of_hugging_face(images):
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"photo": datasets.Image(), "label": datasets.Value("int64")})
    return datasets.Dataset.from_dict({"photo": images, "label": [0] * len(images)}, features=features)


@pytest.mark.parametrize("kind", [list, of_torch, of_hugging_face, iter, lambda images: list(map(np.asarray, images))])
def test_every_kind_of_images_has_the_same_pixels(tmp_path, kind):
    images = pictures()
    source, key = to_source(kind(images), tmp_path / "one")
    files = sorted(Path(source).rglob("*.png"))
    assert [np.asarray(Image.open(file)).tolist() for file in files] == [np.asarray(i).tolist() for i in images]
    assert to_source(pictures(), tmp_path / "two").key == key, "the same pixels have the same key"
    assert to_source(images[:3], tmp_path / "three").key != key
    made = must.shard(source=source, output=tmp_path / "shards", workers=1)
    assert (made.splits, made.rejected) == ({"train": len(images)}, 0)


PATHS = {
    "a list": list,
    "a Series of some rows": lambda paths: pytest.importorskip("pandas").Series(paths, range(5, 5 + len(paths))),
    "an array": lambda paths: np.array(list(map(str, paths))),
    "a generator": iter,
    "pairs": lambda paths: [(path, path.parent.name) for path in paths],
}


@pytest.mark.parametrize("kind", PATHS)
def test_paths_are_read_where_they_are(digits, tmp_path, kind):
    paths = sorted(digits.images.glob("train/*/*.png"))[:30]
    source = to_source(PATHS[kind](paths), tmp_path)
    assert (Path(source.source).name, source.key) == ("images.jsonl", ""), "none is decoded and written again"
    assert must.shard(source=source.source, output=tmp_path / "shards", workers=1).splits == {"train": 30}
    with pytest.raises(must.UserError, match=r"^images: number 30: float is no image$"):
        to_source([*paths, float("nan")], tmp_path)


@pytest.mark.parametrize("turbo", [True, False])
@pytest.mark.parametrize("kind", ["PNG", "WEBP", "JPEG", "TIFF"])
def test_the_bytes_of_a_file_are_turned_once(tmp_path, monkeypatch, kind, turbo):
    if not turbo:
        monkeypatch.setattr("must.data.image.decode.simplejpeg", None)
    data = turned(6, kind=kind)
    (tmp_path / "file").write_bytes(data)
    forms = [data, {"bytes": data, "path": None}, tmp_path / "file", Image.open(tmp_path / "file")]
    source, _ = to_source([*forms[:2], *((form, 3) for form in forms)], tmp_path)
    written = [np.asarray(Image.open(file)) for file in sorted(Path(source).rglob("*.png"))]
    assert len(written) == 6 and all(np.array_equal(image, decode(data)) for image in written)


def test_a_dataset_without_images_or_of_splits_is_refused(tmp_path):
    datasets = pytest.importorskip("datasets")
    words = datasets.Dataset.from_dict({"text": ["a"]})
    with pytest.raises(ValueError, match="no column of images; it has: text"):
        to_source(words, tmp_path)
    with pytest.raises(ValueError, match=r"several splits .*; give one of them"):
        to_source(datasets.DatasetDict({"train": words}), tmp_path)


@pytest.mark.parametrize("item", [np.zeros((4, 4, 3)), np.zeros((4, 4, 2), np.uint8), torch.full((3, 4, 4), 2.0), b"x"])
def test_what_is_no_image_is_refused(item):
    with pytest.raises(ValueError, match=r"^number 3: "):
        convert_image(item, "number 3")


def test_the_command_does_the_same(digits, tmp_path, monkeypatch):
    """With settings of training as flags."""
    given = []
    monkeypatch.setattr("must.api.adapt.adapt", given.append)
    line = ["--output", str(tmp_path / "work"), "--classes", "cat,dog"]
    cli.main(["adapt", str(digits.images), *line, "--settings", "flip=0", "--epochs", "3", "--no-resume"])
    must.adapt(digits.images, classes="cat,dog", output=tmp_path / "work", settings={"flip": 0}, epochs=3, resume=False)
    assert [(str(one.images), one.classes) for one in given] == [(str(digits.images), "cat,dog")] * 2
    assert given[0].settings == {"epochs": "3", "flip": "0", "resume": False}
    assert given[1].settings == {"epochs": 3, "flip": 0, "resume": False}


def test_a_misspelt_input_may_be_corrected_in_the_same_folder(digits, tmp_path):
    work, small = tmp_path / "work", sorted(digits.images.glob("train/*/*.png"))[:20]
    wrong = {"images": "nowhere", "classes": ["a", "b"], "model": "ViT-Q", "test_images": "", "train": "no"}
    for right, message in [
        ({}, "ViT-Q"),
        ({"model": find_assets()}, "nowhere"),
        ({"model": find_assets(), "images": small[:3]}, "images: too few images .3.; at least 11 are needed"),
    ]:
        with pytest.raises(ValueError, match=message):
            must.adapt(**inputs(digits, work, **wrong | right))
    adapted = must.adapt(**inputs(digits, work, images=small, test_images="", train="no"))
    assert adapted.metrics["images"] == 20 and adapted.metrics["labelled"] == 0 and adapted.classes == list(CLASSES)
