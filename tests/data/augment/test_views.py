"""The published views, bit for bit, and the properties that training relies on."""

import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import auto_augment
from timm.data import transforms as timm_transforms
from timm.data.auto_augment import rand_augment_transform
from timm.data.transforms import RandomResizedCropAndInterpolation
from torchvision import transforms

from must.config import TrainConfig
from must.data.augment import PatchMask, TrainViews, fill_color, normalize, seed_generators
from must.data.image.preprocess import EvalView, Preprocess, normalize_pixels
from tests.golden import facts, golden

PREPROCESS = Preprocess(size=32)
CONFIG = TrainConfig(shards="", classifier="", output="", mask_patch_size=16)
SETTINGS = CONFIG, PREPROCESS, 8


@pytest.fixture
def picture():
    return Image.fromarray(golden("augment")["image_uint8"])


def as_input(pixels):
    return normalize(torch.from_numpy(pixels.copy())[None], PREPROCESS)[0].numpy()


def test_views_are_the_published_ones_for_the_same_seeds(picture):
    recorded, views = golden("augment"), TrainViews(*SETTINGS)
    for seed in range(16):
        seed_generators(seed)
        weak, strong, masked = views(picture)
        np.testing.assert_array_equal(as_input(weak), recorded["weak"][seed])
        np.testing.assert_array_equal(as_input(strong), recorded["strong"][seed])
        np.testing.assert_array_equal(masked, np.flatnonzero(recorded["mask"][seed]))
    np.testing.assert_array_equal(as_input(EvalView(PREPROCESS)(picture)), recorded["eval"])


@pytest.mark.parametrize(
    "width, height, padding",
    [(61, 44, 0), (44, 61, 0), (500, 375, 0), (32, 32, 0), (20, 33, 0), (28, 28, 4), (90, 9, 0)],
)
def test_views_are_what_torchvision_and_timm_compute(width, height, padding):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))
    bicubic, fill = transforms.InterpolationMode.BICUBIC, fill_color(PREPROCESS.mean)
    hparams = {"translate_const": 14, "img_mean": fill, "interpolation": Image.Resampling.BICUBIC}
    weak = [transforms.Resize(32, bicubic), transforms.RandomCrop(32, padding=padding or None, fill=fill)]
    strong = [
        RandomResizedCropAndInterpolation(32, (0.3, 1.0), interpolation="bicubic"),
        transforms.RandomHorizontalFlip(),
        rand_augment_transform("rand-m9-mstd0.5-inc1", hparams),
    ]
    theirs = transforms.Compose(weak), transforms.Compose(strong)
    views = TrainViews(replace(CONFIG, weak_padding=padding), PREPROCESS, 8)
    for seed in range(30):
        seed_generators(seed)
        random.seed(seed)  # of which timm draws
        expected = [np.asarray(view(image)) for view in theirs]
        seed_generators(seed)
        for ours, other in zip(views(image)[:2], expected, strict=True):
            np.testing.assert_array_equal(ours, other)


@pytest.mark.parametrize("width, height", [(44, 61), (61, 44), (32, 32), (33, 32), (500, 375), (31, 97), (200, 20)])
def test_evaluation_view_is_torchvisions(width, height):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))
    bicubic = transforms.InterpolationMode.BICUBIC
    theirs = transforms.Compose([transforms.Resize(32, interpolation=bicubic), transforms.CenterCrop(32)])(image)
    np.testing.assert_array_equal(EvalView(PREPROCESS)(image), np.asarray(theirs))


def test_numpy_and_torch_normalisation_agree_to_the_bit():
    pixels = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), dtype=np.uint8)
    theirs = normalize(torch.from_numpy(pixels), PREPROCESS).numpy()
    np.testing.assert_array_equal(normalize_pixels(pixels, PREPROCESS), theirs)


@pytest.mark.parametrize("row", facts()["mask_facts"]["rows"], ids=lambda row: row["config"])
def test_mask_counts_of_the_published_settings(row):
    mask = PatchMask(row["input_size"], row["model_patch_size"], row["mask_patch_size"], row["mask_ratio"])
    assert (mask.cells, mask.masked_cells) == (row["coarse_cells"], row["coarse_masked"])
    assert len(mask()) == row["model_patches_masked"]


def test_mask_of_a_recorded_seed():
    example = facts()["mask_facts"]["example"]
    np.random.seed(0)
    image, cell, patch, ratio = example["args"]
    masked = PatchMask(image, patch, cell, ratio)()
    cells = sorted({(patch // 14) // 2 * 7 + (patch % 14) // 2 for patch in masked})
    assert cells == example["masked_coarse_cells_row_major"]


def test_digits_are_not_mirrored_and_draw_from_the_named_operations_only():
    ramp = np.zeros((32, 32, 3), dtype=np.uint8)
    ramp[:, :16] = 255
    options = {"strong_scale": (1.0, 1.0), "flip": 0.0, "randaugment_ops": ("SharpnessIncreasing",)}
    views = TrainViews(replace(CONFIG, **options), PREPROCESS, 8)
    for seed in range(20):
        seed_generators(seed)
        _, strong, _ = views(Image.fromarray(ramp))
        assert strong[:, :8].mean() > 200 and strong[:, -8:].mean() < 50


def test_posterize_at_the_highest_magnitude_keeps_no_bit(picture):
    options = {"randaugment": "rand-m10-p1-inc1", "randaugment_ops": ("PosterizeIncreasing",), "flip": 0}
    _, strong, _ = TrainViews(replace(CONFIG, **options), PREPROCESS, 8)(picture)
    assert (strong == 0).all()


def test_a_host_programs_timm_draws_as_it_did(picture):
    before = auto_augment.random  # type: ignore[attr-defined]
    random.seed(3)
    expected = random.random()
    random.seed(3)
    TrainViews(*SETTINGS)(picture)
    assert auto_augment.random is timm_transforms.random is before is random  # type: ignore[attr-defined]
    assert random.random() == expected
