"""The step cut over processes and micro-batches: the same gradients, values and weights as in one piece."""

from dataclasses import replace
from functools import partial

import pytest
import torch

from must.config import TrainConfig
from must.data.image.preprocess import Preprocess
from must.data.loader import GlobalBatches
from must.model.classifier import load_text_classifier, save_classifier
from must.model.description import load_description
from must.training.step import MustStep, compute_fairness_loss
from must.training.trainer import train
from tests.training.lives import difference, training
from tests.training.processes import on_ranks
from tests.training.step_ranks import ALONE, IMAGES, made_batch, recorded_model, run_steps, run_steps_on_a_rank
from tests.training.test_distributed import PRIOR, assert_same, relative


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"classes": 600},  # the running class balance
        {"confidence_threshold": 0.9},  # micro-batches without a confident image
        {"fairness_weight": 0.0},
        {"prior": PRIOR},
    ],
    ids=str,
)
def test_micro_batches_give_the_gradients_of_the_whole_batch(settings, below):
    assert_same(run_steps(ALONE, accumulate=8, **settings), run_steps(ALONE, **settings), below)


DDP, SPARING = {"processes": 2}, {"activation_checkpointing": True}


@pytest.mark.slow
@pytest.mark.parametrize("forms", [[{}, DDP, {}], [{}, SPARING, DDP]], ids=str)
def test_a_run_goes_on_in_another_form(forms):
    """A step in each: the same names, the same weights to rounding."""
    states: list[dict] = []
    for number, form in enumerate(forms):
        settings = {"state": states[-1] if states else None, **form}
        if settings.pop("processes", 1) > 1:
            states.append(on_ranks(2, run_steps_on_a_rank, steps=[number, number + 1], **settings))
        else:
            states.append(run_steps(ALONE, steps=range(number, number + 1), **settings))
    expected = run_steps(ALONE)
    for name in ("student", "teacher"):
        assert {*map(tuple, (state[name] for state in states))} == {tuple(expected[name])}
        assert relative(states[-1][name], expected[name]) < 1e-4
    values = [pytest.approx(value, rel=1e-4, abs=1e-5) for value in expected["values"]]
    assert [state["values"][0] for state in states] == values


def test_a_step_without_finite_gradients_leaves_the_class_balance():
    """The running balance of many classes; the epoch's first step, which has none yet, too."""
    config = TrainConfig(shards="-", classifier="-", output="-", batch_size=IMAGES, lr=0.03)
    method = MustStep(recorded_model(600), Preprocess(size=32), config, ALONE, 9, 9)
    bias, batch = method.student.classifier, made_batch(0, range(IMAGES))
    for step, broken in enumerate([True, False, True, False]):
        weights, before = bias.detach().clone(), method.class_balance
        if broken:
            bias.data.fill_(torch.nan)
        values = method(step, [batch])
        bias.data.copy_(weights if broken else bias.detach())
        assert values["skipped"] == broken
        if broken and step:
            torch.testing.assert_close(method.class_balance, before, rtol=0, atol=0)
        assert method.class_balance.isfinite().all() == (step > 0)
    assert values["loss_fairness"].isfinite()


def test_micro_batches_are_the_batches_in_pieces():
    order = partial(GlobalBatches, [10, 14], 8, 2, seed=3, rank=1, world=2)
    batches, pieces = (list(order(micro_batches=count)) for count in (1, 2))
    assert len(pieces) == 12 and all(len(piece) == 2 for piece in pieces)
    assert [pieces[i] + pieces[i + 1] for i in range(0, 12, 2)] == batches


@pytest.mark.parametrize("classes", [10, 600])
def test_equal_shares_are_the_published_balance(classes):
    torch.manual_seed(0)
    equal, published, given = torch.full((classes,), 1 / classes, dtype=torch.float64), None, None
    for _ in range(2):
        balance = torch.randn(classes, dtype=torch.float64).softmax(0).requires_grad_()
        ours, given = compute_fairness_loss(balance, given, equal)
        theirs, published = compute_fairness_loss(balance, published)
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
        gradients = (torch.autograd.grad(loss, balance)[0] for loss in (ours, theirs))
        torch.testing.assert_close(*gradients, rtol=1e-12, atol=1e-12)


def test_the_balance_is_least_at_the_shares_given():
    """-sum q log m: the gradient is -q / m, and at m = q the value is the entropy of q, which none is below."""
    prior = torch.tensor([0.7, 0.2, 0.1], dtype=torch.float64)
    entropy = -(prior * prior.log()).sum()
    assert compute_fairness_loss(prior, None, prior)[0].item() == pytest.approx(entropy.item(), rel=1e-12)
    for seed in range(5):
        other = torch.randn(3, generator=torch.Generator().manual_seed(seed)).double().softmax(0).requires_grad_()
        loss, _ = compute_fairness_loss(other, None, prior)
        loss.backward()
        torch.testing.assert_close(other.grad, -prior / other.detach())
        assert loss > entropy


config = partial(training, epochs=1, batch_size=50, workers=0, log_every=1)


def with_shares(digits, path, shares):
    save_classifier(replace(load_text_classifier(digits.classifier), shares=shares), str(path))
    return str(path)


@pytest.mark.slow
def test_shares_change_the_model_and_the_bundle_tells_them(digits, tmp_path):
    known = with_shares(digits, tmp_path / "known", PRIOR)
    for name, prior, shares in (("unused", "uniform", []), ("used", "given", list(PRIOR))):
        train(config(digits, tmp_path / name, classifier=known, class_prior=prior))
        assert load_description(str(tmp_path / name)).provenance.class_shares == shares
    assert difference(tmp_path / "used", tmp_path / "unused") > 0
    other = with_shares(digits, tmp_path / "other", PRIOR[::-1])
    with pytest.raises(ValueError, match=r"\A.*a run with other settings: class_shares \(.*\Z"):
        train(config(digits, tmp_path / "used", classifier=other, class_prior="given"))
