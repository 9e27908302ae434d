"""Features are a file: each picture passes through a tower once, whatever is done with it, and wherever it stops."""

import shutil
from collections import Counter

import numpy as np
import pytest
import torch

from must.api.demo import find_assets
from must.base import storage
from must.config import ClassifierConfig, EvaluateConfig, ReviewConfig, ShardConfig
from must.data.augment import normalize
from must.data.loader import EvalSource
from must.data.reader import open_reader
from must.data.shards.build import shard
from must.evaluation.evaluate import evaluate
from must.memory import features as module
from must.memory.features import read_features
from must.memory.predictions import TopLabels
from must.model.bundle import load_bundle
from must.model.classifier import classifier
from must.model.description import get_preprocess
from must.model.distributed import World
from must.model.masked_vit import MaskedViT
from must.reviewing.prepare import compute_review
from tests.data.shards.test_shard import tree
from tests.memory.refining import answered, run, trained

ALONE = World(0, 1, torch.device("cpu"))


@pytest.fixture
def passes(monkeypatch):
    """Images that passed through a tower, by the method that was called."""
    count = Counter[str]()
    for name in ("classify", "forward"):
        original = getattr(MaskedViT, name)

        def counted(self, pixels, *more, name=name, original=original):
            count[name] += len(pixels)
            return original(self, pixels, *more)

        monkeypatch.setattr(MaskedViT, name, counted)
    return count


def read(digits, folder="", shards="", split="train", batch=16, **more):
    bundle = load_bundle(digits.zero_shot)
    source = EvalSource(open_reader(str(shards) or digits.shards, split), get_preprocess(bundle.description), batch, 0)
    return read_features(bundle.model, source, ALONE, str(folder), **more)


def packed(images, output):
    shard(ShardConfig(source=str(images), output=str(output), workers=1))
    return output


def test_each_picture_passes_once_through_all_that_people_do(digits, truth, tmp_path, passes):
    """Labels, questions, answers, a report, another list of classes: with training once more, by the trained tower."""
    more = {"features": str(tmp_path / "features")}
    run(digits, tmp_path, **more)
    assert passes == {"classify": 150}
    places = {"model": str(tmp_path / "model"), "baseline": digits.classifier, "shards": digits.shards}
    machine = {"workers": 0, "device": "cpu"}
    compute_review(ReviewConfig(**places, output=str(tmp_path / "review"), **machine, **more))
    run(digits, tmp_path, answers=answered(tmp_path / "review", truth[:30]), **more)
    config = EvaluateConfig(**places, split="train", output=str(tmp_path / "report"), **machine, **more)
    assert evaluate(config).images == 150 and passes == {"classify": 150}
    evaluate(EvaluateConfig(**places, output=str(tmp_path / "test"), **machine, **more))
    evaluate(EvaluateConfig(**places, output=str(tmp_path / "test"), **machine, **more))
    assert passes == {"classify": 150 + 120}, "the test images, once"
    (tmp_path / "others.txt").write_text("two\nthree\ncat\n")
    other = str(tmp_path / "other.safetensors")
    classifier(ClassifierConfig(classes=str(tmp_path / "others.txt"), model=str(find_assets()), output=other))
    summary, rows = run(digits, tmp_path / "list", classifier=other, **more)
    assert passes == {"classify": 150 + 120} and {row["class"] for row in rows} <= {"two", "three", "cat"}
    run(digits, trained(digits, tmp_path / "trained"), **more)
    run(digits, tmp_path / "trained", **more)
    assert passes == {"classify": 2 * 150 + 120} and summary["images"] == 150


@pytest.fixture
def photos(digits, tmp_path):
    """Two hundred pictures in one folder."""
    files = sorted(digits.images.glob("*/*/*.png"))[:200]
    (tmp_path / "photos").mkdir()
    for number, file in enumerate(files):
        shutil.copy(file, tmp_path / f"photos/{number:03}.png")
    return tmp_path / "photos"


def test_only_new_pictures_pass_and_those_that_are_gone_leave(digits, photos, tmp_path, passes):
    folder, later = tmp_path / "features", [photos / f"{number:03}.png" for number in range(180, 200)]
    kept = {file: file.read_bytes() for file in later}
    for file in later:
        file.unlink()
    first = read(digits, folder, packed(photos, tmp_path / "1"))
    assert len(first.numbers) == passes["classify"] == 180
    for file, data in kept.items():
        file.write_bytes(data)
    (photos / "000.png").unlink()
    second = read(digits, folder, packed(photos, tmp_path / "2"))
    assert len(second.numbers) == 199 and passes["classify"] == 200
    old, same = np.isin(first.contents, second.contents), np.isin(second.contents, first.contents)
    assert old.sum() == 179 and torch.equal(first.vectors[old], second.vectors[same])
    (file,) = folder.glob("*/train/*")
    assert file.name.startswith("rows-") and len(read(digits, folder, tmp_path / "2").numbers) == 199
    assert passes["classify"] == 200


def test_copies_are_one_picture(digits, photos, tmp_path, passes):
    before = read(digits, "", packed(photos, tmp_path / "1"))
    shutil.copytree(photos, photos / "again")
    after = read(digits, "", packed(photos, tmp_path / "2"))
    assert passes["classify"] == 400 and len(after.numbers) == 200 and len(after.split) == 400
    first, second = (part.embedding[np.argsort(part.contents)].float() for part in (before, after))
    assert torch.cosine_similarity(first, second).min() > 0.999
    assert sorted(after.find_rows()[1].tolist()) == sorted([*range(200)] * 2)


def test_twice_as_many_pictures_have_vectors_of_their_own(digits, photos, tmp_path, passes, caplog):
    few = tmp_path / "few"
    few.mkdir()
    for file in sorted(photos.iterdir())[:90]:
        shutil.copy(file, few)
    folder = tmp_path / "features"
    first = read(digits, folder, packed(few, tmp_path / "1"))
    second = read(digits, folder, packed(photos, tmp_path / "2"))
    assert passes["classify"] == 90 + 200 and "all are looked at again" in caplog.text
    assert first.whitenings[0].projection.shape != second.whitenings[0].projection.shape


class KilledError(BaseException):
    pass


def test_rows_of_a_whitening_that_is_gone_are_not_read_with_the_next_one(digits, tmp_path, monkeypatch):
    """A kill between the removal of the whitening and that of the rows, as of a damaged file, leaves them behind."""
    whole = read(digits, tmp_path / "features")
    next((tmp_path / "features").rglob("whitening.*")).unlink()
    monkeypatch.setattr(module, "FITTED", 64)
    monkeypatch.setattr("must.model.memory.FITTED", 64)
    first, again = (read(digits, tmp_path / "features") for _ in range(2))
    assert torch.equal(first.vectors, again.vectors) and not torch.equal(first.vectors, whole.vectors)


@pytest.mark.parametrize("write", range(1, 8))
def test_a_pass_that_is_killed_goes_on_and_ends_with_the_same_bytes(digits, tmp_path, monkeypatch, passes, write):
    """Parts of 32 pictures; killed before each of its writes."""
    monkeypatch.setattr(module, "PART", 32)
    monkeypatch.setattr(module, "FITTED", 64)
    monkeypatch.setattr("must.model.memory.FITTED", 64)
    whole = read(digits, tmp_path / "whole")
    assert passes.pop("classify") == 150
    writes, write_bytes = [], storage.write_bytes

    def write_or_die(uri, data):
        writes.append(uri)
        if len(writes) == write:
            raise KilledError
        write_bytes(uri, data)

    with monkeypatch.context() as patch:
        patch.setattr(storage, "write_bytes", write_or_die)
        with pytest.raises(KilledError):
            read(digits, tmp_path / "killed")
    again = read(digits, tmp_path / "killed")
    assert torch.equal(whole.vectors, again.vectors) and torch.equal(whole.embedding, again.embedding)
    assert tree(tmp_path / "killed") == tree(tmp_path / "whole")
    assert passes["classify"] <= 150 + 32, "what was written is not computed again"


def test_a_damaged_part_is_made_again(digits, tmp_path, passes, caplog):
    whole = read(digits, tmp_path)
    (file,) = tmp_path.glob("*/train/rows-*")
    file.write_bytes(file.read_bytes()[:-9])
    again = read(digits, tmp_path)
    assert "is damaged; it is made again" in caplog.text and passes["classify"] == 300
    assert torch.allclose(whole.vectors.float(), again.vectors.float(), atol=2e-3)  # sums may differ by run


def test_another_tower_has_features_of_its_own_and_probabilities_are_the_models(digits, tmp_path, passes):
    read(digits, tmp_path)
    bundle = load_bundle(digits.adapted)
    source = EvalSource(open_reader(digits.shards, "train"), get_preprocess(bundle.description), 16, 0)
    found = read_features(bundle.model, source, ALONE, str(tmp_path))
    assert passes["classify"] == 300 and len([*tmp_path.iterdir()]) == 2
    logits = torch.cat([bundle.model(normalize(b.pixels, source.preprocess)) for b in source]).detach()
    assert torch.allclose(found.probabilities(bundle.model).float(), logits.softmax(1), atol=2e-3)
    said = TopLabels.from_probabilities(found.probabilities(bundle.model)).labels
    assert (said == logits.argmax(1)).float().mean() > 0.99


def test_test_images_are_whitened_as_those_of_the_memory_or_not_at_all(digits, tmp_path):
    """They must not decide how pictures are compared."""
    alone = read(digits, tmp_path, split="test", fit=False)
    assert alone.vectors.shape == (120, 0) and not any(path.is_file() for path in tmp_path.rglob("*"))
    train, test = read(digits, tmp_path), read(digits, tmp_path, split="test", fit=False)
    assert test.vectors.shape == (120, train.vectors.shape[1])
    assert module.are_equal(test.whitenings, train.whitenings)
