"""`--pseudo-labels propagated`."""

from pathlib import Path

import pytest
import torch

from must.data.augment import normalize
from must.data.loader import EvalSource
from must.data.reader import open_reader
from must.memory import propagate
from must.memory.propagate import RARE, TOP, PropagatedLabels
from must.model.bundle import make_zero_shot_bundle
from must.model.classifier import load_text_classifier
from must.model.description import get_preprocess
from must.model.distributed import init_distributed
from must.model.memory import SMALLEST_PROBABILITY, find_nearest, weigh_neighbours
from must.training import trainer
from must.training.trainer import find_threshold, start_mask_token
from tests.training.processes import on_ranks
from tests.training.step_ranks import ALONE

IMAGES, CLASSES = 40, 6


def made(classes: int = CLASSES) -> tuple[PropagatedLabels, torch.Tensor, torch.Tensor]:
    """(labels that start as random probabilities, those, the neighbours' cosines)."""
    generator = torch.Generator().manual_seed(0)
    values = torch.nn.functional.normalize(torch.randn(IMAGES, 8, generator=generator), dim=1)
    P = torch.randn(IMAGES, classes, generator=generator).mul(2).softmax(1)
    neighbours, cosines = find_nearest(values)
    values, numbers = P.topk(min(TOP, classes))
    weights, start = weigh_neighbours(cosines), (numbers, values)
    labels = PropagatedLabels(neighbours, weights, start, numbers.clone(), values.clone(), P.sum(0), IMAGES)
    return labels, P, cosines


def test_ten_rounds_over_all_images_are_the_formula_ten_times():
    labels, P, cosines = made()
    everything = torch.arange(IMAGES)
    for _ in range(10):
        labels.update([everything], [labels(P, everything)], ALONE)
    wanted = P
    for _ in range(10):
        near = (weigh_neighbours(cosines)[:, :, None] * wanted[labels.neighbours]).sum(1)
        lift = near / (wanted.mean(0) + RARE)
        wanted = P.clamp(min=SMALLEST_PROBABILITY) * lift.clamp(min=RARE)
        wanted = wanted / wanted.sum(1, keepdim=True)
    torch.testing.assert_close(labels.dense(everything), wanted, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(labels.total, wanted.sum(0), atol=1e-4, rtol=1e-4)


def test_of_many_classes_the_largest_are_stored():
    labels, P, _ = made(classes=100)
    some = torch.tensor([3, 7])
    labels.update([some], [P[some + 1]], ALONE)
    assert labels.classes.shape == (IMAGES, TOP)
    torch.testing.assert_close(labels.dense(some).max(1).values, P[some + 1].max(1).values)
    torch.testing.assert_close(labels.total, P.sum(0) + (labels.dense(some) - made(100)[0].dense(some)).sum(0))


def test_an_image_that_is_in_a_batch_twice_counts_once(monkeypatch):
    labels, P, _ = made()
    twice = torch.tensor([3, 7, 3])
    labels.update([twice], [P[twice + 1 + torch.tensor([0, 0, 1])]], ALONE)
    everything = torch.arange(IMAGES)
    torch.testing.assert_close(labels.dense(torch.tensor([3]))[0], P[4])
    torch.testing.assert_close(labels.total, labels.dense(everything).sum(0))
    monkeypatch.setattr(propagate, "IMAGES_AT_ONCE", 7)
    torch.testing.assert_close(labels.sum_labels(everything), labels.total)


def test_the_threshold_of_more_images_than_torch_can_sort():
    confidence = torch.zeros(2**24 + 1)
    confidence[: 2**23] = 0.5
    assert find_threshold(0.4, confidence) == 0.5
    assert find_threshold(0.4, torch.tensor([0.0, 1.0])) == pytest.approx(0.6)


def updated(size: int) -> dict:
    """The last process's state after a batch of eight images, of which each process has a part."""
    with init_distributed("cpu", 60) as world:
        labels, P, _ = made()
        own = torch.arange(8)[world.rank * 8 // size : (world.rank + 1) * 8 // size]
        labels.update([own], [labels(P[own], own)], world)
        return world.gather(labels.state_dict())[-1]


@pytest.mark.slow
def test_every_process_stores_the_labels_of_the_whole_batch():
    alone, together = updated(1), on_ranks(2, updated, 2)
    for name in ("classes", "values", "total"):
        torch.testing.assert_close(together[name], alone[name])


def test_similar_images_correct_zero_shot(digits):
    """The bundled digits, whose true classes are in the shards: labels that training starts with are better."""
    zero_shot, reader = (
        make_zero_shot_bundle(load_text_classifier(digits.classifier)),
        open_reader(digits.shards, "train"),
    )
    source = EvalSource(reader, get_preprocess(zero_shot.description), 64, 0)
    labels, confidence = PropagatedLabels.compute(zero_shot.model, source, ALONE)
    everything = torch.arange(len(reader))
    names = zero_shot.description.classes
    truth = torch.tensor([names.index(Path(reader.description(n)["source"]).parts[-2]) for n in everything.tolist()])
    with torch.inference_mode():
        own = torch.cat([zero_shot.model(normalize(b.pixels, source.preprocess)).argmax(1) for b in source])
    before, after = (own == truth).float().mean(), (labels.dense(everything).argmax(1) == truth).float().mean()
    assert after > before + 0.05, (before, after)
    assert confidence.shape == (len(reader),)


def test_the_mask_token_starts_as_the_images_mean_patch(digits, monkeypatch):
    monkeypatch.setattr(trainer, "MASK_TOKEN_IMAGES", 40)
    fresh = make_zero_shot_bundle(load_text_classifier(digits.classifier))
    preprocess, patches = get_preprocess(fresh.description), []
    reader = open_reader(digits.shards, "train")
    start_mask_token(fresh, EvalSource(reader, preprocess, 16, 0), torch.device("cpu"))
    pixels = normalize(next(iter(EvalSource(reader, preprocess, 40, 0))).pixels, preprocess)
    fresh.model.tower.forward_features(pixels, lambda seen: patches.append(seen) or seen, None)
    torch.testing.assert_close(fresh.model.mask_token[0, 0], patches[0].mean((0, 1)), atol=1e-5, rtol=1e-4)
