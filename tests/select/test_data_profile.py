"""What a user reads before training: the facts, the words, and where they end up."""

import contextlib
import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from must.api.demo.data import CLASSES, digit_parts
from must.base.parameters import load
from must.config import EvaluateConfig, ShardConfig, TrainConfig
from must.data.loading.loader import EvalSource
from must.data.loading.reader import open_reader
from must.data.shards.build import shard
from must.evaluation.evaluate import evaluate
from must.method.model.bundle import load_description, preprocess_of, zero_shot_bundle
from must.method.model.classifier import load_text_classifier
from must.method.select.data_profile import data_profile, paragraph
from must.method.select.image_features import extract_features
from must.method.select.introduce import DATA_FILE
from must.method.select.ladder import KNOWING
from must.method.select.neighbours import look_alikes
from must.method.train.presets import preset
from must.method.train.trainer import train
from tests.select.ranks import introduced
from tests.select.test_ladder import TRUTH, K, said, tokens, wrong
from tests.train.processes import on_ranks

__all__ = ["tokens"]

NAMES = ["ant", "bee", "cat", "dog"]


def facts_of(tokens, labels, names=NAMES, images=0, sure=0.7):
    neighbours, originals = look_alikes(tokens)
    probabilities = said(labels, sure).astype(np.float32)[originals]
    copies = len(labels) - len(originals)
    return data_profile(probabilities, neighbours, copies, names, images or len(labels))


def test_the_numbers_are_those_of_the_images(tokens):
    facts = facts_of(tokens, TRUTH)
    assert facts["images"] == facts["looked_at"] == 240 and facts["copies"] == 0
    assert facts["largest"]["share"] == facts["smallest"]["share"] == 0.25
    assert facts["effective_classes"] == pytest.approx(4) and facts["unseen"] == 0
    assert facts["agreement"] > 0.9 and facts["preferred"] == 1
    assert facts["doubted"] == 0, "0.7 x 0.7 is sure enough"
    assert facts_of(tokens, TRUTH, sure=0.6)["doubted"] == 1
    json.dumps(facts, allow_nan=False)


def test_copies_count_once(tokens):
    twice = facts_of(np.repeat(tokens, 2, 0), np.repeat(wrong(0.2), 2))
    once = facts_of(tokens, wrong(0.2))
    assert twice["copies"] == 240 and twice["looked_at"] == 480
    same = {"images": 0, "looked_at": 0, "copies": 0}
    assert twice | same == once | same
    assert "240 (50.0%) are copies or nearly copies of others" in paragraph(twice)[0]


@pytest.mark.parametrize(
    "share, words",
    [(0.0, "know the classes well"), (0.8, "know something of the classes"), (1, "and a standard error are needed")],
)
def test_what_the_ladder_can_do_is_what_it_will_do(tokens, share, words):
    """The sentence speaks of the same number that must.method.select.ladder decides by."""
    rng = np.random.default_rng(1)
    labels = np.where(rng.random(len(TRUTH)) < share, rng.integers(0, K, len(TRUTH)), TRUTH)
    facts = facts_of(tokens, labels)
    assert words in paragraph(facts)[-1], facts["preferred"]
    assert (facts["preferred"] < KNOWING) == (share == 1)


def test_facts_of_an_earlier_version_are_told(tokens):
    """A bundle that was written before keeps its paragraph."""
    facts = facts_of(tokens, TRUTH)
    del facts["preferred"]
    assert paragraph(facts)[-1] == "How well look-alikes know the classes was not asked."


def test_classes_that_are_never_seen_and_strange_names():
    rng = np.random.default_rng(0)
    names = ["a\x1b[2Jb", "<script>", "c" * 300, "d"]
    labels = np.array([0] * 60 + [1] * 30)
    text = "\n".join(paragraph(facts_of(rng.normal(size=(90, 8)).astype(np.float32), labels, names)))
    assert "'a?[2Jb' most often (66.7%) and 2 of 4 classes never" in text and "\x1b" not in text


def packed(folder, images):
    (folder / "images").mkdir(parents=True)
    for number, image in enumerate(images):
        image.save(folder / "images" / f"{number:03d}.png")
    shard(ShardConfig(source=str(folder / "images"), output=str(folder / "shards"), workers=1))
    return str(folder / "shards")


def nearly(image, number):
    """The same to any eye, but other bytes, so that sharding does not leave it out."""
    pixels = np.asarray(image).copy()
    pixels[number // 32, number % 32] ^= 1
    return Image.fromarray(pixels)


@pytest.mark.parametrize("kind", ["three images", "one image", "copies only", "one class"])
def test_small_and_odd_data(digits, tmp_path, kind):
    images = [image for image, _ in digit_parts()["unlabeled"][:60]]
    ones = [image for image, label in digit_parts()["unlabeled"] if label == CLASSES[0]][:60]
    chosen = {
        "three images": images[:3],
        "one image": images[:1],
        "copies only": [nearly(images[0], number) for number in range(60)],
        "one class": ones,
    }[kind]
    facts = introduced(packed(tmp_path, chosen), digits.classifier, str(tmp_path / "place"))
    text = " ".join(paragraph(facts))
    assert facts["images"] == len(chosen)
    if kind == "one class":
        assert facts["largest"]["class"] == CLASSES[0] and facts["effective_classes"] < 3
    else:
        assert "Fewer than 50 different images" in text and facts["agreement"] is None
    if kind == "copies only":
        assert facts["copies"] == 59 and facts["doubted"] is None
    if kind == "one image":
        assert text.startswith("1 image; ")


def test_images_that_cannot_be_decoded_are_counted(digits, tmp_path, monkeypatch):
    monkeypatch.setattr("must.data.loading.loader.seen", half_of_them)
    facts = introduced(digits.shards, digits.classifier, str(tmp_path))
    assert facts["undecodable"] + facts["looked_at"] == 150 and facts["undecodable"] > 30
    assert (
        f"; {facts['undecodable']} cannot be decoded" in paragraph(facts)[0] and "of which" not in paragraph(facts)[0]
    )


def half_of_them(data, view, max_pixels):
    from must.data.image.decode import seen

    if sum(data) % 2:
        raise ValueError("damaged")
    return seen(data, view, max_pixels)


@pytest.mark.slow
def test_two_processes_tell_the_same_as_one(digits, tmp_path):
    alone = introduced(digits.shards, digits.classifier, str(tmp_path / "one"))
    both = on_ranks(2, introduced, digits.shards, digits.classifier, str(tmp_path / "two"))
    numbers = ("agreement", "preferred", "doubted", "confidence", "effective_classes")
    assert {name: both[name] for name in numbers} == pytest.approx({name: alone[name] for name in numbers}, rel=1e-4)
    assert both | dict.fromkeys(numbers, 0) == alone | dict.fromkeys(numbers, 0)
    few = packed(tmp_path / "few", [image for image, _ in digit_parts()["unlabeled"][:1]])
    assert on_ranks(2, introduced, few, digits.classifier, str(tmp_path / "three"))["looked_at"] == 1


def test_it_draws_no_random_number(digits):
    bundle = zero_shot_bundle(load_text_classifier(digits.classifier))
    preprocess = preprocess_of(bundle.description)
    torch.manual_seed(3)
    before = torch.get_rng_state()
    extract_features(
        bundle.model,
        EvalSource(open_reader(digits.shards, "train"), preprocess, 64, 0),
        torch.device("cpu"),
    )
    assert torch.equal(torch.get_rng_state(), before), "training would go another way"


def trained(digits, output, **changes):
    values = {"shards": digits.shards, "classifier": digits.classifier, "output": str(output)}
    settings = {"epochs": 1, "batch_size": 50, "workers": 0, "seed": 1, "device": "cpu", **changes}
    train(load(TrainConfig, {**values, **settings}, preset=preset("digits", "any")))
    return load_description(str(output)).provenance


@pytest.fixture(scope="module")
def run(digits, tmp_path_factory):
    """(folder of a short run with the ladder, what it printed)."""
    output, text = tmp_path_factory.mktemp("run"), io.StringIO()
    with contextlib.redirect_stdout(text):
        trained(digits, output)
    return output, text.getvalue()


def test_the_log_the_bundle_and_the_report_tell_it(digits, run, tmp_path):
    output, out = run
    facts = load_description(str(output)).provenance["data"]
    assert facts["images"] == 150 and all(sentence in out for sentence in paragraph(facts))
    assert out.index("the images: 150 images") < out.index("trained 150 images")
    evaluate(
        EvaluateConfig(
            model=str(output), baseline=digits.classifier, shards=digits.shards, output=str(tmp_path), workers=0,
            device="cpu",
        )
    )  # fmt: skip
    page = (tmp_path / "report.html").read_text()
    assert "<h2>Your data</h2>" in page and "the runner-up in" in page
    assert "training: data" not in page, "sentences, no raw numbers"


@pytest.mark.slow
def test_a_run_that_goes_on_looks_no_second_time(digits, run, tmp_path, capsys, monkeypatch):
    shutil.copytree(run[0], tmp_path / "run")
    facts = load_description(str(run[0])).provenance["data"]
    (tmp_path / "run" / "model.json").unlink()
    monkeypatch.setattr("must.method.select.introduce.extract_features", None)  # whoever looks now, fails
    assert trained(digits, tmp_path / "run")["data"] == facts
    assert "going on after step 3" in (out := capsys.readouterr().out) and paragraph(facts)[0] in out


@pytest.mark.parametrize("damage", ["{", '{"key": 1}'])
def test_damaged_notes_are_made_anew(digits, tmp_path, capsys, damage):
    facts = introduced(digits.shards, digits.classifier, str(tmp_path))
    (tmp_path / DATA_FILE).write_text(damage)
    assert introduced(digits.shards, digits.classifier, str(tmp_path)) == facts
    assert json.loads((tmp_path / DATA_FILE).read_text())["facts"] == facts


def test_without_the_ladder_there_is_none(digits, tmp_path, capsys):
    assert "data" not in trained(digits, tmp_path, select="none")
    assert "the images:" not in capsys.readouterr().out and not list(Path(tmp_path).rglob(DATA_FILE))
