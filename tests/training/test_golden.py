"""The method, to the digit: the recorded numbers of the published implementation."""

import functools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from must.training.step import (
    build_optimizer,
    compute_fairness_loss,
    compute_losses,
    ema_decay,
    learning_rate,
    make_pseudo_labels,
    make_teacher,
    set_learning_rate,
)
from tests.golden import facts, golden, golden_batch, golden_model, our_name, tensors
from tests.training.step_ranks import ALONE, four_steps, recorded_config

CONFIG = recorded_config()
TERMS = {
    "loss_st": "loss_self_training", "loss_fair": "loss_fairness", "loss_mim": "loss_reconstruction",
    "loss_align": "loss_alignment", "loss": "loss", "conf_ratio": "confident",
}  # fmt: skip


@functools.cache
def recorded_steps(dtype):
    return four_steps(ALONE, dtype=dtype)


def test_first_step(below):
    student, step0 = golden_model(), golden("step0")
    weak, strong, masked = golden_batch(0)
    with torch.no_grad():
        teacher_logits = make_teacher(student)(weak)
    labels = make_pseudo_labels(teacher_logits.softmax(-1), 0.7)
    below(1e-4, "largest deviation, teacher", np.abs(teacher_logits.numpy() - step0["teacher_logits"]).max())
    np.testing.assert_allclose(teacher_logits.softmax(-1).numpy(), step0["teacher_probs"], atol=1e-5)
    np.testing.assert_array_equal(labels.label.numpy(), step0["pseudo_label"])
    np.testing.assert_array_equal(labels.confident.numpy(), step0["conf_mask"])

    output = student(strong, masked)
    losses = compute_losses(output, labels, strong, masked, CONFIG)
    below(1e-4, "largest deviation, student", np.abs(output.logits.detach().numpy() - step0["student_logits"]).max())
    np.testing.assert_allclose(output.alignment.detach().numpy(), step0["align_per_patch"], atol=1e-5)
    whole = torch.from_numpy(step0["x_recon"])
    patches = F.unfold(whole, 8, stride=8).transpose(1, 2)  # [B, L, 3 P P], (channel, row, column)
    expected = patches.gather(1, masked[..., None].expand(-1, -1, 192))
    np.testing.assert_allclose(output.reconstruction.detach().numpy(), expected.numpy(), atol=1e-5)
    for recorded, ours in TERMS.items():
        if recorded in step0:
            assert losses.values[ours].item() == pytest.approx(step0[recorded].item(), abs=2e-5), ours
    with torch.no_grad():
        plain = student(golden_batch(0)[1])
    np.testing.assert_allclose(plain.numpy(), step0["student_logits_unmasked_strong"], atol=1e-4)

    losses.total.backward()
    theirs = tensors(step0, strip="grad/")
    gradients = {name: parameter.grad for name, parameter in student.named_parameters()}
    assert gradients.keys() == theirs.keys() | {n for n in gradients if ".resblocks." in n}
    largest = [(gradients[name] - value).abs().max() / value.square().mean().sqrt() for name, value in theirs.items()]
    below(1e-4, "largest deviation, of the gradient's rms", max(largest).item())
    for name, norm in zip(step0["grad_norm_names"], step0["grad_norm"], strict=True):
        assert gradients[our_name(str(name))].double().norm().item() == pytest.approx(norm, rel=1e-4, abs=1e-6), name


@pytest.mark.parametrize("name, dtype, most", [("f32", torch.float32, 1e-4), ("f64", torch.float64, 1e-8)], ids=str)
def test_trajectory(name, dtype, most, below):
    """The terms of all steps; those that were recorded in float64 are free of rounding."""
    _, values, *_ = recorded_steps(dtype)
    recorded = {ours: golden("trajectory")[f"{name}/{theirs}"] for theirs, ours in TERMS.items()}
    worst = max(abs(values[step][ours] - steps[step]) for ours, steps in recorded.items() for step in range(4))
    below(most, "largest deviation", worst)


@pytest.mark.parametrize("which", ["student", "ema"])
def test_final_weights(which, below):
    *_, student, teacher = recorded_steps(torch.float32)
    model = dict((student if which == "student" else teacher).named_parameters())
    initial, worst = tensors(golden("weights")), 0.0
    for name, expected in tensors(golden("trajectory"), strip=f"{which}/").items():
        ours = model[name].detach()
        if name.endswith("in_proj_bias"):  # the key third's true gradient is zero: its steps are rounding noise
            ours, expected = (torch.cat([part[:64], part[128:]]) for part in (ours, expected))
            start = torch.cat([initial[name][:64], initial[name][128:]])
        else:
            start = initial[name]
        worst = max(worst, ((ours - expected).norm() / (expected - start).norm()).item())
    below(5e-3, "largest relative deviation of a tensor's change", worst)
    with torch.no_grad():
        logits = (student if which == "student" else teacher)(golden_batch(0)[0])
    np.testing.assert_allclose(logits.numpy(), golden("trajectory")[f"eval/{which}_logits"], atol=1e-3)


def test_parameter_groups_are_the_published_ones():
    model = golden_model()
    expected = {our_name(row["name"]): row for row in facts()["param_table"]}
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    assert set(names.values()) == set(expected)
    optimizer = build_optimizer(model, 0.65, 0.05)
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            row = expected[names[id(parameter)]]
            assert group["weight_decay"] == row["weight_decay"], row["name"]
            assert group["lr_scale"] == pytest.approx(row["lr_scale"], rel=1e-12), row["name"]
            assert model.find_layer(names[id(parameter)]) == row["layer_id"], row["name"]
    assert {group["name"] for group in optimizer.param_groups} == {row["group"] for row in facts()["param_table"]}
    assert (optimizer.defaults["betas"], optimizer.defaults["eps"]) == ((0.9, 0.999), 1e-8)


def test_group_learning_rates_of_every_step():
    recorded = golden("trajectory")
    optimizer = build_optimizer(golden_model(), 0.65, 0.05)
    for step in range(4):
        set_learning_rate(optimizer, learning_rate(step, 4, 0.032, 1e-6, 8))
        ours = {group["name"]: group["lr"] for group in optimizer.param_groups}
        expected = dict(zip(map(str, recorded["group_names"]), recorded["group_lr"][step], strict=True))
        assert ours == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("task", [name for name, table in facts()["real_run_tables"].items() if "lr_at" in table])
def test_schedules_of_real_runs(task):
    table = facts()["real_run_tables"][task]
    lr, min_lr = (table[name] * 256 / table["total_batch"] for name in ("base_lr", "min_lr"))
    for step, expected in table["lr_at"].items():
        ours = learning_rate(int(step), table["total_steps"], lr, min_lr, table["total_batch"])
        assert ours == pytest.approx(expected, rel=1e-9)
    for step, expected in table["ema_decay_at"].items():
        assert ema_decay(int(step), 0.999, 0.9998, 2000) == pytest.approx(expected, rel=1e-12)
    scales = table["lr_scale_by_layer_id"]
    assert [0.65 ** (len(scales) - 1 - number) for number in range(len(scales))] == pytest.approx(scales, rel=1e-12)


def test_many_classes_average_the_balance_over_an_epochs_steps():
    """K >= 512 (formulas of tests/golden): running mean with weight 1/2, no gradient into the past, doubled, reset."""
    torch.manual_seed(0)
    q0, q1 = (torch.randn(600, dtype=torch.float64).softmax(0).requires_grad_() for _ in range(2))
    loss0, running = compute_fairness_loss(q0, None)
    assert loss0.item() == pytest.approx(-2 / 600 * q0.log().sum().item(), rel=1e-12)
    loss1, running = compute_fairness_loss(q1, running)
    mixed = (q0.detach() + q1) / 2
    assert loss1.item() == pytest.approx(-2 / 600 * mixed.log().sum().item(), rel=1e-12)
    loss1.backward()
    assert q0.grad is None
    torch.testing.assert_close(q1.grad, -1 / 600 / mixed.detach())
    torch.testing.assert_close(running, mixed.detach())
    few = torch.full((511,), 1 / 511, dtype=torch.float64)
    loss, running = compute_fairness_loss(few, None)
    assert loss.item() == pytest.approx(math.log(511)) and running is None


@pytest.mark.parametrize("classes, threshold", [(2, 0.5), (10, 0.1)])
def test_threshold_is_strict_and_in_float32(classes, threshold):
    """Equal logits score exactly float32(1 / K): not above it, though float32(0.1) is above 0.1 in double."""
    logits = torch.zeros(1, classes)
    assert not make_pseudo_labels(logits.softmax(-1), threshold).confident.item()
    assert make_pseudo_labels(logits.softmax(-1), threshold - 1e-6).confident.item()


def test_a_batch_without_a_confident_image_trains_on():
    student = golden_model()
    weak, strong, masked = golden_batch(0)
    labels = make_pseudo_labels(student(weak).softmax(-1), 1.0)
    assert not labels.confident.any()
    losses = compute_losses(student(strong, masked), labels, strong, masked, CONFIG)
    losses.total.backward()
    assert losses.values["loss_self_training"].item() == 0
    assert all(torch.isfinite(parameter.grad).all() for parameter in student.parameters())
    assert student.decoder.weight.grad.abs().sum() > 0
    expected = 0.2 * golden("step0")["loss_fair"] + golden("step0")["loss_mim"] + 0.5 * golden("step0")["loss_align"]
    assert losses.values["loss"].item() == pytest.approx(expected.item(), abs=1e-4)


def test_a_class_that_nobody_predicts_keeps_the_loss_finite():
    balance = torch.tensor([1.0, 0.0], requires_grad=True)
    loss, _ = compute_fairness_loss(balance, None)
    loss.backward()
    assert torch.isfinite(loss) and torch.isfinite(balance.grad).all()
