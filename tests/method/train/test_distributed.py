"""Several real processes (gloo): N processes are one process on the global batch; the published mean on demand."""

import numpy as np
import pytest
import torch

from tests.golden import golden, our_name, tensors
from tests.method.train.processes import on_ranks
from tests.method.train.step_ranks import ALONE, four_steps_on_a_rank, states_after_four_steps
from tests.method.train.test_golden import TERMS


def relative(ours, theirs):
    names = [name for name in theirs if not name.endswith("in_proj_bias")]
    difference = sum((ours[name] - theirs[name]).double().square().sum() for name in names).sqrt()
    return (difference / sum(theirs[name].double().square().sum() for name in names).sqrt()).item()


def test_published_semantics_on_two_processes(below):
    recorded = golden("ddp")
    gradients, values, student, _ = on_ranks(2, four_steps_on_a_rank, recorded["perm"].tolist(), "rank", 0)
    below(1e-5, "relative deviation of the gradient", relative(gradients, tensors(recorded, strip="grad/")))
    for theirs, ours in TERMS.items():
        means = recorded[f"loss/{theirs}"].mean(axis=0)  # a rank's values there, the mean over ranks here
        np.testing.assert_allclose([step[ours] for step in values], means, atol=1e-4, err_msg=ours)
    for name, norm in zip(map(str, recorded["names"]), recorded["final_norm"], strict=True):
        if not name.endswith("in_proj_bias"):
            assert student[our_name(name)].double().norm().item() == pytest.approx(norm, rel=1e-4), name


@pytest.mark.parametrize(
    "world, classes, uneven",
    [
        (4, 0, False),
        (2, 0, True),  # all confident images on one rank, none on the other
        (2, 600, False),  # the running class balance
    ],
)
def test_n_processes_are_one_process_on_the_global_batch(world, classes, uneven, below):
    parts = [list(range(rank * 8 // world, (rank + 1) * 8 // world)) for rank in range(world)]
    if uneven:
        is_confident = torch.from_numpy(golden("step0")["conf_mask"])
        order = torch.argsort(is_confident.int(), descending=True, stable=True).tolist()
        confident = int(is_confident.sum())
        assert 0 < confident < 8
        parts = [order[:confident], order[confident:]]
    gradients, values, student, teacher = on_ranks(world, four_steps_on_a_rank, parts, "global", classes)
    expected = states_after_four_steps(ALONE, slice(None), "global", classes)  # without any process group
    below(1e-5, "relative deviation of the gradient", relative(gradients, expected[0]))
    below(1e-4, "relative deviation of the student", relative(student, expected[2]))
    below(1e-4, "relative deviation of the teacher", relative(teacher, expected[3]))
    for ours, theirs in zip(values, expected[1], strict=True):
        assert ours == pytest.approx(theirs, abs=2e-3)
