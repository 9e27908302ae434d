"""`--views fast`: the draws of the exact views, nearly their pixels, and their statistics."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from must.config import TrainConfig
from must.data.augment.draws import upright_size
from must.data.augment.views import FastViews, TrainViews
from must.data.image.decode import decode, identify
from must.data.image.preprocess import Preprocess
from must.method.train.trainer import train
from tests import zoo
from tests.data.augment import test_views
from tests.evaluation.digits import digits

SETTINGS = replace(test_views.SETTINGS, preprocess=Preprocess(size=64))


def files() -> list[bytes]:
    """Two JPEGs that can be decoded smaller, one that cannot, one that must be turned, and a PNG."""
    sizes = [(300, 200), (200, 600), (90, 70)]
    found = [zoo.encoded(zoo.picture(n, *size), "JPEG", quality=92) for n, size in enumerate(sizes)]
    return [*found, zoo.turned(6), zoo.encoded(zoo.picture(5, 128, 99))]


@pytest.mark.parametrize("change", [{}, {"weak_padding": 8}, {"flip": 1.0}, {"strong_scale": (0.3, 0.4)}])
def test_without_randaugment_the_pixels_are_nearly_those_of_the_exact_views(change: dict[str, Any]) -> None:
    settings = replace(SETTINGS, randaugment="", **change)
    exact, fast = TrainViews(settings), FastViews(settings)
    for number, data in enumerate(files()):
        for sample in range(5):
            ours, theirs = (views.of_file(data, (0, 0, sample)) for views in (fast, exact))
            np.testing.assert_array_equal(ours[2], theirs[2])
            for a, b in zip(ours[:2], theirs[:2], strict=True):
                assert a.shape == b.shape == (64, 64, 3) and a.dtype == np.uint8
                assert np.abs(a.astype(int) - b).mean() < 3, (number, sample)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_the_size_that_boxes_are_drawn_for_is_that_of_the_picture(kind: str) -> None:
    for orientation in range(1, 9):
        data = zoo.turned(orientation, kind=kind)
        assert upright_size(identify(data)) == decode(data).size, orientation


def test_statistics_are_those_of_the_exact_views() -> None:
    """Mean, spread and brightest and darkest pixels of the strong views of one image over many draws."""
    data = files()[0]
    strong = [
        np.stack([views(SETTINGS).of_file(data, (0, 0, sample))[1] for sample in range(150)]).astype(float)
        for views in (FastViews, TrainViews)
    ]
    for statistic in (np.mean, np.std):
        ours, theirs = (statistic(views, axis=(1, 2, 3)) for views in strong)
        assert abs(ours.mean() - theirs.mean()) < 2
        assert np.corrcoef(ours, theirs)[0, 1] > 0.98


def test_training_runs_and_is_another_run_than_the_exact_one(tmp_path: Path) -> None:
    data = digits()
    settings: dict[str, Any] = {"epochs": 1, "batch_size": 50, "workers": 0, "mask_patch_size": 8, "weak_padding": 4}
    paths = {"shards": data.shards, "classifier": data.classifier, "output": str(tmp_path / "model")}
    assert train(TrainConfig(**paths, **settings, views="fast")).skipped_steps == 0
    with pytest.raises(ValueError, match="holds checkpoints of a run with other settings"):
        train(TrainConfig(**paths, **settings))
