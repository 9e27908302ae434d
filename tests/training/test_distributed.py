"""Several real processes (gloo): N processes are one process on the global batch; the published mean on demand."""

import numpy as np
import pytest
import torch

from tests.golden import golden, our_name, tensors
from tests.training.processes import on_ranks
from tests.training.step_ranks import ALONE, published_steps_on_a_rank, run_steps, run_steps_on_a_rank
from tests.training.test_golden import TERMS


def relative(ours, theirs):
    names = [name for name in theirs if not name.endswith("in_proj_bias")]
    difference = sum((ours[name] - theirs[name]).double().square().sum() for name in names).sqrt()
    return (difference / sum(theirs[name].double().square().sum() for name in names).sqrt()).item()


def test_published_semantics_on_two_processes(below):
    recorded = golden("ddp")
    gradients, values, student = on_ranks(2, published_steps_on_a_rank, recorded["perm"].tolist())
    below(1e-5, "relative deviation of the gradient", relative(gradients, tensors(recorded, strip="grad/")))
    for theirs, ours in TERMS.items():
        means = recorded[f"loss/{theirs}"].mean(axis=0)  # a rank's values there, the mean over ranks here
        np.testing.assert_allclose([step[ours] for step in values], means, atol=1e-4, err_msg=ours)
    for name, norm in zip(map(str, recorded["names"]), recorded["final_norm"], strict=True):
        if not name.endswith("in_proj_bias"):
            assert student[our_name(name)].double().norm().item() == pytest.approx(norm, rel=1e-4), name


PRIOR = tuple((torch.arange(1.0, 11) / 55).tolist())  # shares of the classes that are known


def assert_same(ours, theirs, below):
    for name, tolerance in [("gradients", 1e-5), ("student", 1e-4), ("teacher", 1e-4)]:
        below(tolerance, f"relative deviation, {name}", relative(ours[name], theirs[name]))
    for mine, expected in zip(ours["values"], theirs["values"], strict=True):
        assert mine == pytest.approx(expected, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize(
    "world, accumulate, settings",
    [
        (4, 1, {}),
        (2, 1, {"confidence_threshold": 0.998}),  # all confident images on one rank, none on the other
        (2, 1, {"classes": 600}),  # the running class balance
        (2, 2, {}),  # micro-batches
        (2, 2, {"prior": PRIOR}),
        (2, 2, {"loss_reduction": "rank"}),
    ],
    ids=str,
)
def test_n_processes_are_one_process_on_the_global_batch(world, accumulate, settings, below):
    ours = on_ranks(world, run_steps_on_a_rank, accumulate=accumulate, **settings)
    several = "loss_reduction" in settings  # else without any process group
    theirs = on_ranks(world, run_steps_on_a_rank, **settings) if several else run_steps(ALONE, **settings)
    assert_same(ours, theirs, below)
