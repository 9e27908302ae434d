"""`--views fast` and `--augment-device gpu`: draws of the exact views, nearly their pixels, and their statistics."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data.auto_augment import LEVEL_TO_ARG

from must.config import TrainConfig
from must.data.augment import cpu as exact_views
from must.data.augment.cpu import FastViews, TrainViews
from must.data.augment.draws import Operation, ViewSettings, seed_views, size_of
from must.data.augment.gpu import OPERATION_NAMES, DeviceInputs, DeviceViews, apply_ops
from must.data.image.decode import ORIENTATION, decode, identify
from must.data.image.preprocess import Preprocess
from must.data.loading.loader import TrainDataset, make_views, train_batches
from must.data.loading.order import GlobalBatches
from must.data.loading.reader import ShardReader
from must.method.train.trainer import train
from tests import zoo
from tests.data.shards.test_shard import sharded
from tests.evaluation.digits import digits

SETTINGS = ViewSettings(Preprocess(size=64), patch_size=8, mask_patch_size=16)
PLAIN = replace(SETTINGS, randaugment="")
FILL = exact_views.fill_color(SETTINGS.preprocess.mean)
Triple = tuple[np.ndarray, np.ndarray, np.ndarray]


def both(maker: Any, data: bytes, sample: int) -> Triple:
    """Weak and strong view and mask as any of the makers makes them."""
    made = maker.of_file(data, (0, 0, sample))
    if isinstance(maker, DeviceViews):
        inputs = DeviceInputs.of(*(torch.from_numpy(np.stack([part])) for part in made))
        weak, strong = maker(inputs)
        return weak[0].numpy(), strong[0].numpy(), made[-1]
    return made


def files() -> list[bytes]:
    """Two JPEGs that can be decoded smaller, one that cannot, one that must be turned, and a PNG."""
    sizes = [(300, 200), (200, 600), (90, 70)]
    found = [zoo.encoded(zoo.picture(n, *size), "JPEG", quality=92) for n, size in enumerate(sizes)]
    return [*found, zoo.turned(6), zoo.encoded(zoo.picture(5, 128, 99))]


@pytest.mark.parametrize("maker", [FastViews, DeviceViews])
@pytest.mark.parametrize("change", [{}, {"weak_padding": 8}, {"flip": 1.0}, {"strong_scale": (0.3, 0.4)}])
def test_without_randaugment_the_pixels_are_nearly_those_of_the_exact_views(maker: Any, change: dict[str, Any]) -> None:
    settings = replace(PLAIN, **change)
    exact, other = TrainViews(settings), maker(settings)
    for number, data in enumerate(files()):
        for sample in range(5):
            ours, theirs = both(other, data, sample), both(exact, data, sample)
            np.testing.assert_array_equal(ours[2], theirs[2])
            for a, b in zip(ours[:2], theirs[:2], strict=True):
                assert a.shape == b.shape == (64, 64, 3) and a.dtype == np.uint8
                assert np.abs(a.astype(int) - b).mean() < 3, (number, sample)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_the_size_that_boxes_are_drawn_for_is_that_of_the_picture(kind: str) -> None:
    exif = Image.Exif()
    for exif[ORIENTATION] in range(1, 9):
        data = zoo.encoded(zoo.picture(), kind, exif=exif)
        assert size_of(identify(data)) == decode(data).size, exif[ORIENTATION]


@pytest.mark.parametrize("maker", [FastViews, DeviceViews])
def test_statistics_are_those_of_the_exact_views(maker: Any) -> None:
    """Mean, spread and brightest and darkest pixels of the strong views of one image over many draws."""
    data = files()[0]
    strong = [
        np.stack([both(kind(SETTINGS), data, sample)[1] for sample in range(150)]).astype(float)
        for kind in (maker, TrainViews)
    ]
    for statistic in (np.mean, np.std):
        ours, theirs = (statistic(views, axis=(1, 2, 3)) for views in strong)
        assert abs(ours.mean() - theirs.mean()) < 2
        assert np.corrcoef(ours, theirs)[0, 1] > 0.98


def arguments_of(name: str) -> list[tuple[float, ...]]:
    level = LEVEL_TO_ARG[name]
    return [tuple(level(value, {"translate_const": 20})) if level else () for value in (0.0, 3.3, 9.0, 10.0)]


@pytest.mark.parametrize("name", OPERATION_NAMES)
def test_each_operation_computes_what_timm_does(name: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (48, 48, 3), np.uint8)
    image = Image.blend(zoo.picture(3, 48, 48), Image.fromarray(noise), 0.1)
    moves = name.startswith(("Rotate", "Shear", "Translate", "Gaussian"))
    for values in arguments_of(name):
        theirs = np.asarray(exact_views.apply_ops(image, [Operation(name, values)], FILL, Image.Resampling.BILINEAR))
        pixels = torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1)[None].float()
        argument = torch.tensor([[values[0] if values else 0.0]])
        ours = apply_ops(pixels, torch.tensor([[OPERATION_NAMES.index(name)]]), argument, FILL)[0].permute(1, 2, 0)
        difference = np.abs(ours.numpy() - theirs)
        if moves:
            assert np.median(difference) <= 1 and difference.mean() < 3
        else:
            assert difference.max() <= 1, values


def test_operations_are_done_in_order_and_to_their_own_image_only() -> None:
    images = torch.full((3, 3, 4, 4), 100.0)
    invert, solarize = OPERATION_NAMES.index("Invert"), OPERATION_NAMES.index("SolarizeAdd")
    operations = torch.tensor([[invert, solarize], [-1, invert], [-1, -1]])
    done = apply_ops(images, operations, torch.tensor([[0, 50.0], [0, 0], [0, 0]]), FILL)
    assert done[:, 0, 0, 0].tolist() == [155, 155, 100] and (images == 100).all()
    done = apply_ops(images, operations.flip(1), torch.tensor([[50.0, 0], [0, 0], [0, 0]]), FILL)
    assert done[:, 0, 0, 0].tolist() == [105, 155, 100]


@pytest.mark.parametrize("kind, device", [("fast", "cpu"), ("exact", "gpu")])
def test_batches_do_not_depend_on_workers_and_are_whole(tmp_path: Path, kind: str, device: str) -> None:
    sharded(tmp_path, 24, samples_per_shard=10)
    reader, cpu = ShardReader(str(tmp_path / "out"), "train"), torch.device("cpu")
    runs = []
    for workers in (0, 2):
        dataset = TrainDataset(reader, make_views(SETTINGS, kind, device), 0)
        runs.append(list(train_batches(dataset, GlobalBatches(reader.sizes, 8, 2, 0), workers, cpu)))
    assert len(runs[0]) == 6
    for ours, theirs in zip(*runs, strict=True):
        assert ours.weak.shape == ours.strong.shape == (8, 64, 64, 3) and ours.weak.dtype == torch.uint8
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    assert not torch.equal(runs[0][0].strong, runs[0][3].strong)


def test_damaged_files_are_refused_as_by_the_exact_views() -> None:
    for maker in (TrainViews, FastViews, DeviceViews):
        for data in (b"", b"no image", zoo.truncated("JPEG"), zoo.truncated("PNG"), zoo.bomb()):
            with pytest.raises(ValueError, match=r"empty|known format|truncated|broken|more than"):
                maker(SETTINGS).of_file(data, (0, 0, 0))


@pytest.mark.parametrize("options", [{"views": "fast"}, {"augment_device": "gpu"}])
def test_training_runs_and_is_another_run_than_the_exact_one(tmp_path: Path, options: dict[str, str]) -> None:
    data = digits()
    settings: dict[str, Any] = {"epochs": 1, "batch_size": 50, "workers": 0, "mask_patch_size": 8, "weak_padding": 4}
    paths = {"shards": data.shards, "classifier": data.classifier, "output": str(tmp_path / "model")}
    assert train(TrainConfig(**paths, **settings, **options)).skipped_steps == 0
    with pytest.raises(ValueError, match="holds checkpoints of a run with other settings"):
        train(TrainConfig(**paths, **settings))


def test_seeds_are_those_of_torch_numpy_and_python() -> None:
    """The draws of `seed_views` in all three kinds of views are the golden ones, so they must use the same seeds."""
    makers = TrainViews(SETTINGS), FastViews(SETTINGS), DeviceViews(SETTINGS)
    for sample in range(20):
        draws = []
        for maker in makers:
            seed_views(1, 2, sample)
            draws.append(maker.draws(300, 200))
        assert draws[0].strong == draws[1].strong == draws[2].strong and draws[0].operations == draws[2].operations
