"""What training can do besides the published method: class shares that are known."""

from dataclasses import replace
from functools import partial

import pytest
import torch

from must.method.model.classifier import load_text_classifier, save_classifier
from must.method.model.description import load_description
from must.method.train.losses import fairness_loss
from must.method.train.trainer import train
from tests.method.train.lives import difference, training
from tests.method.train.test_step import PRIOR


@pytest.mark.parametrize("classes", [10, 600])
def test_equal_shares_are_the_published_balance(classes):
    """With many classes over two steps, the running balance included."""
    torch.manual_seed(0)
    equal, published, given = torch.full((classes,), 1 / classes, dtype=torch.float64), None, None
    for _ in range(2):
        balance = torch.randn(classes, dtype=torch.float64).softmax(0).requires_grad_()
        ours, given = fairness_loss(balance, given, equal)
        theirs, published = fairness_loss(balance, published)
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
        gradients = (torch.autograd.grad(loss, balance)[0] for loss in (ours, theirs))
        torch.testing.assert_close(*gradients, rtol=1e-12, atol=1e-12)


def test_the_balance_is_least_at_the_shares_given():
    """-sum q log m: the gradient is -q / m, and at m = q the value is the entropy of q, which none is below."""
    prior = torch.tensor([0.7, 0.2, 0.1], dtype=torch.float64)
    entropy = -(prior * prior.log()).sum()
    assert fairness_loss(prior, None, prior)[0].item() == pytest.approx(entropy.item(), rel=1e-12)
    for seed in range(5):
        other = torch.randn(3, generator=torch.Generator().manual_seed(seed)).double().softmax(0).requires_grad_()
        loss, _ = fairness_loss(other, None, prior)
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
    with pytest.raises(ValueError, match=r"a run with other settings: class_shares \(") as error:
        train(config(digits, tmp_path / "used", classifier=other, class_prior="given"))
    assert "\n" not in str(error.value)


def test_shares_that_nobody_gave_are_told_from_python_too(digits, tmp_path):
    with pytest.raises(ValueError, match=r"--class-prior given: .* holds no class shares"):
        train(config(digits, tmp_path / "model", class_prior="given"))
