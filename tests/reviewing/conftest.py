"""A review of the digits, and a folder of its own for each test."""

import json
import shutil

import pytest

from must.answers.review import Review
from must.config import ReviewConfig
from must.data.reader import ShardReader
from must.reviewing.prepare import compute_review
from must.reviewing.review import prepare_review
from tests.evaluation.digits import digits
from tests.once import made_once


def config_at(folder, **more):
    made = digits()
    places = {"model": made.adapted, "baseline": made.classifier, "shards": made.shards, "output": str(folder)}
    return ReviewConfig(**places, workers=0, device="cpu", **more)


def reader_of(review):
    return ShardReader(digits().shards, review.split)


def join_lines(folder):
    """The answers' lines."""
    lines = map(json.loads, (folder / "answers.jsonl").read_text().splitlines())
    return [line for line in lines if "classes" not in line]


@pytest.fixture(scope="session")
def prepared():
    """A folder with review.json, made once; tests copy it."""
    return made_once("review", lambda folder: prepare_review(config_at(folder)))


@pytest.fixture
def folder(prepared, tmp_path):
    shutil.copytree(prepared, tmp_path / "review")
    return tmp_path / "review"


@pytest.fixture
def review(folder):
    return Review.load(str(folder))


@pytest.fixture
def images(folder, review):
    return compute_review(config_at(folder), review)[1]


def labels_of(review):
    reader = ShardReader(digits().shards, review.split)
    return {picture.sha256: reader.description(picture.number)["label"] for picture in review.pictures}
