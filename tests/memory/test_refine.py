"""`must refine` on the bundled digits: labels, the model's memory, people's answers and alpha."""

import contextlib
import shutil
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from must.answers.answers_file import append, hash_answers
from must.api.cli import main
from must.base import storage
from must.config import EvaluateConfig, ExportConfig, ShardConfig
from must.data.augment import normalize
from must.data.image.decode import decode_view
from must.data.image.preprocess import EvalView
from must.data.reader import ShardReader
from must.data.shards.build import shard
from must.evaluation.evaluate import evaluate
from must.exporting.export import export
from must.memory import refine as refine_module
from must.model.bundle import interpolate, load_bundle, save_bundle
from must.model.description import MemoryFacts, get_preprocess, load_description
from must.prediction.onnx_model import OnnxClassifier
from tests.common import ended, read_csv
from tests.data.shards.test_shard import tree
from tests.memory.refining import accuracy, answered, flags, run, selection, trained, weights
from tests.training.lives import same


@pytest.fixture(scope="module")
def zero_shot(digits, many, tmp_path_factory):
    folder = tmp_path_factory.mktemp("zero-shot")
    return folder, *run(digits, folder, shards=many[0])


def test_labels_are_better_than_zero_shots(zero_shot, many):
    _, summary, rows = zero_shot
    assert len(rows) == summary["images"] == 500 and {row["image"] for row in rows} == set(many[1])
    assert list(rows[0]) == ["image", "class", "probability", "by", "zero_shot", "zero_shot_probability", "similarity"]
    assert accuracy(rows, many[1], "class") > accuracy(rows, many[1], "zero_shot") + 0.02
    assert summary["changed"] == pytest.approx(np.mean([row["class"] != row["zero_shot"] for row in rows]))
    assert all(0 < float(row[f"{name}probability"]) <= 1 for row in rows for name in ("", "zero_shot_"))


def test_copies_are_named(digits, tmp_path):
    photos = shutil.copytree(digits.images / "train", tmp_path / "photos")
    first = min(photos.rglob("*.png"))
    shutil.copy(first, photos / "same.png")
    Image.open(first).point(lambda value: int(0.95 * value)).save(photos / "darker.png")
    shard(ShardConfig(source=str(photos), output=str(tmp_path / "shards"), workers=1))
    run(digits, tmp_path, shards=str(tmp_path / "shards"))
    copies = read_csv(tmp_path / "labels/copies.csv")
    group = next(row["group"] for row in copies if row["image"] == "same.png")
    cosines = {row["image"]: float(row["cosine"]) for row in copies if row["group"] == group}
    assert {*cosines} >= {str(first.relative_to(photos)), "same.png", "darker.png"}
    assert cosines["same.png"] == cosines[str(first.relative_to(photos))] and max(cosines.values()) == 1
    sizes = Counter(row["group"] for row in copies)
    assert min(sizes.values()) > 1 and [*sizes] == [str(number + 1) for number in range(len(sizes))]


def test_a_model_that_is_not_there_yet_is_zero_shots_with_a_memory_and_better_on_new_images(digits, zero_shot):
    folder, summary, _ = zero_shot
    description = load_description(str(folder / "model"))
    assert 450 < description.provenance.memory.images < 500 and description.weights_sha256 == summary["weights_sha256"]
    assert description.provenance.selection.alpha == 0
    assert same(weights(folder / "model"), weights(digits.zero_shot))
    values = {"model": str(folder / "model"), "baseline": digits.classifier, "shards": digits.shards}
    found = evaluate(EvaluateConfig(**values, output=str(folder / "report"), workers=0, device="cpu"))
    assert found.labelled == 120 and found.adapted.top1 > found.baseline.top1 + 0.02


def test_the_same_again_gives_the_same_bytes(digits, zero_shot, many, tmp_path):
    shutil.copytree(zero_shot[0] / "model", tmp_path / "model")
    run(digits, tmp_path, shards=many[0], workers=1)
    for name in ("model/model.safetensors", "model/model.json", "labels/predictions.csv"):
        assert (tmp_path / name).read_bytes() == (zero_shot[0] / name).read_bytes(), name


def test_a_trained_model_gets_its_memory_in_place(digits, tmp_path):
    _, rows = run(digits, trained(digits, tmp_path), memory_images=100)
    after = load_description(str(tmp_path / "model")).provenance
    before = load_description(digits.adapted).provenance
    assert same(weights(tmp_path / "model"), weights(digits.adapted)) and after.config == before.config
    assert after.memory.images == 100 and len(rows) == 150
    assert list(rows[0])[-3:] == ["without_memory", "without_memory_probability", "similarity"]
    assert after.selection.alpha == 1 and after.selection.check.images == 150 and not after.selection.check.warnings


def test_another_alpha_begins_with_the_trained_weights_again_and_stays(digits, truth, tmp_path):
    trained(digits, tmp_path)
    for alpha in (0.5, 0.25, 1.0, 0.5):
        run(digits, tmp_path, alpha=alpha, limit=20)
        network = interpolate(load_bundle(digits.zero_shot).model, load_bundle(digits.adapted).model, alpha)
        torch.testing.assert_close(weights(tmp_path / "model")["classifier"], network.classifier.detach())
        assert selection(tmp_path).alpha == alpha
        assert same(weights(tmp_path / "model/adapted"), weights(digits.adapted)), alpha
    run(digits, tmp_path, answers=answered(tmp_path / "review", truth[:60]))
    assert selection(tmp_path).alpha == 0.5, "answers do not change it"


@pytest.mark.parametrize("images", [3, 1])
def test_few_images_have_labels_and_a_memory_too(digits, tmp_path, images):
    summary, rows = run(digits, tmp_path, limit=images)
    facts = load_description(str(tmp_path / "model")).provenance.memory
    assert summary["images"] == len(rows) == images and facts == MemoryFacts(facts.images, 0, facts.shared)
    assert 1 <= facts.images <= images, "near copies are one"


def test_a_model_that_collapsed_is_warned_of(digits, tmp_path, capsys):
    bundle = load_bundle(digits.adapted)
    bundle.model.classifier.data[:, 1:] = -bundle.model.classifier.data[:, :1]  # all images are zeros
    save_bundle(str(tmp_path / "model"), bundle.model, bundle.description)
    run(digits, tmp_path)
    assert "the model predicts few of the classes" in selection(tmp_path).check.warnings[0]
    assert "warning: the model predicts few" in capsys.readouterr().err


def refused(digits, folder, capfd):
    """The line with which the command ends."""
    line = ended(capfd, 2, main, ["refine", *(f"--{name}={value}" for name, value in flags(digits, folder).items())])
    assert line.startswith("must refine: ")
    return line


@pytest.mark.parametrize("place", ["checkpoints/step", "adapted/model.json"])
def test_an_unfinished_training_is_refused(digits, tmp_path, capfd, place):
    (tmp_path / "model" / place).parent.mkdir(parents=True)
    (tmp_path / "model" / place).touch()
    assert "holds a training that is not finished" in refused(digits, tmp_path, capfd)
    assert not (tmp_path / "labels").exists()


def test_a_bundle_of_other_classes_is_refused_and_stays(digits, tmp_path, capfd):
    bundle = load_bundle(digits.adapted)
    description = bundle.description
    description.classes[0] = "cow"
    save_bundle(str(tmp_path / "model"), bundle.model, description)
    before = tree(tmp_path)
    assert "has other classes" in refused(digits, tmp_path, capfd)
    assert tree(tmp_path) == before


def test_a_version_of_a_registry_stays_as_it_was_promoted(digits, tmp_path, capfd):
    trained(digits, tmp_path)
    (tmp_path / "version.json").write_text("{}")
    before = tree(tmp_path)
    assert "is a version of a registry" in refused(digits, tmp_path, capfd) and tree(tmp_path) == before


def meanwhile(monkeypatch, action):
    """Runs `action` while `must refine` reads the images."""
    module: Any = refine_module
    read = module.read_features
    monkeypatch.setattr(module, "read_features", lambda *values: (action(), read(*values))[1])


def test_a_model_that_another_program_writes_meanwhile_stays(digits, tmp_path, monkeypatch):
    run(digits, tmp_path)
    meanwhile(monkeypatch, lambda: shutil.copytree(digits.adapted, tmp_path / "model", dirs_exist_ok=True))
    with pytest.raises(ValueError, match="another program has written a model there meanwhile"):
        run(digits, tmp_path)
    assert load_description(str(tmp_path / "model")) == load_description(digits.adapted)


def test_an_answer_that_comes_meanwhile_is_not_taken_for_a_used_one(digits, truth, tmp_path, monkeypatch):
    lines = [{"sha256": sha256, "label": label, "sampled": "random"} for _, sha256, label in truth[:6]]
    append(tmp_path / "answers.jsonl", *lines[:4])
    before = hash_answers(str(tmp_path))
    meanwhile(monkeypatch, lambda: append(tmp_path / "answers.jsonl", *lines[4:]))
    summary, _ = run(digits, tmp_path, answers=str(tmp_path))
    assert (summary["answers"], summary["answers_sha256"]) == (4, before) and hash_answers(str(tmp_path)) != before


@pytest.mark.parametrize("writes", [1, 2, 3], ids=["nothing", "the weights", "all but the removal"])
def test_a_save_that_is_killed_leaves_the_old_model_or_the_new_one(digits, tmp_path, monkeypatch, writes):
    run(digits, trained(digits, tmp_path))
    before, count = load_description(str(tmp_path / "model")), iter(range(9))
    write = storage.write_bytes

    def stop(*values, **options):
        if next(count) == writes:
            raise KeyboardInterrupt
        return write(*values, **options)

    new = replace(before, logit_factor=before.logit_factor * 2)
    with monkeypatch.context() as patch, contextlib.suppress(KeyboardInterrupt):
        patch.setattr(storage, "write_bytes", stop)
        save_bundle(str(tmp_path / "model"), load_bundle(digits.zero_shot).model, new)
    found = load_bundle(str(tmp_path / "model")).description
    assert found == before if writes == 1 else found.logit_factor == new.logit_factor


def test_a_full_disk_leaves_the_model_as_it_was(digits, tmp_path, monkeypatch):
    run(digits, trained(digits, tmp_path))
    before, write = tree(tmp_path / "model"), storage.write_bytes

    def full(uri, *values, **options):
        if uri.endswith(".safetensors"):
            raise OSError(28, "No space left on device")
        return write(uri, *values, **options)

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space"):
        patch.setattr(storage, "write_bytes", full)
        run(digits, tmp_path, memory_images=50)
    assert tree(tmp_path / "model") == before


@pytest.mark.slow
def test_an_int8_file_gives_no_picture_of_the_memory_a_vote_for_itself(digits, tmp_path):
    run(digits, trained(digits, tmp_path))
    values = {"model": str(tmp_path / "model"), "shards": digits.shards, "output": str(tmp_path / "onnx")}
    assert export(ExportConfig(**values, precision="int8", limit=150))["check"]["agreement"] >= 0.97
    reader, bundle = ShardReader(digits.shards, "train"), load_bundle(str(tmp_path / "model"))
    preprocess = get_preprocess(bundle.description)
    pixels = np.stack([decode_view(reader.image(number), EvalView(preprocess)) for number in range(40)])
    with torch.no_grad():
        exact = bundle.classify(normalize(torch.from_numpy(pixels), preprocess))[1]
    found = OnnxClassifier(tmp_path / "onnx" / "model.onnx")(pixels).similarity
    assert np.abs(found - exact.numpy()).mean() < 0.1 and exact.mean() < 0.95
