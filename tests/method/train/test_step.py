"""The step cut over processes and micro-batches: the same gradients, values and weights as in one piece."""

import shutil

import pytest
import torch

from must.base.parameters import load
from must.config import TrainConfig
from must.data.loading.order import GlobalBatches, MicroBatches
from must.method.distributed.process_group import World
from must.method.train.autotune import STEPS_THAT_PAY, should_compile
from tests.method.train.processes import on_ranks
from tests.method.train.step_ranks import run_steps, run_steps_on_a_rank
from tests.method.train.test_distributed import relative

ALONE = World(0, 1, torch.device("cpu"))


def assert_same(ours, theirs, record_property):
    for name, tolerance in [("gradients", 1e-5), ("student", 1e-4), ("teacher", 1e-4)]:
        deviation = relative(ours[name], theirs[name])
        record_property(f"relative deviation, {name}", deviation)
        assert deviation < tolerance, name
    for mine, expected in zip(ours["values"], theirs["values"], strict=True):
        assert mine == pytest.approx(expected, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"classes": 600},  # the running class balance
        {"confidence_threshold": 0.9},  # micro-batches without a confident image
        {"fairness_weight": 0.0},
    ],
    ids=str,
)
def test_micro_batches_give_the_gradients_of_the_whole_batch(settings, record_property):
    assert_same(run_steps(ALONE, accumulate=8, **settings), run_steps(ALONE, **settings), record_property)


@pytest.mark.parametrize("reduction", ["global", "rank"])
def test_micro_batches_on_two_processes(reduction, record_property):
    ours = on_ranks(2, run_steps_on_a_rank, accumulate=2, loss_reduction=reduction)
    two = reduction == "rank"
    theirs = on_ranks(2, run_steps_on_a_rank, loss_reduction=reduction) if two else run_steps(ALONE)
    assert_same(ours, theirs, record_property)


def test_parameters_cut_over_processes_train_the_same(record_property):
    assert_same(on_ranks(2, run_steps_on_a_rank, parallel="fsdp", accumulate=2), run_steps(ALONE), record_property)


@pytest.mark.slow
def test_a_run_goes_on_in_another_form(record_property):
    """One process, then parameters cut over two, then a copy on each of two: as if nothing had changed."""
    states = [run_steps(ALONE, steps=range(1))]
    for form, steps in [("fsdp", [1, 2]), ("ddp", [2, 3])]:
        states.append(on_ranks(2, run_steps_on_a_rank, parallel=form, state=states[-1], steps=steps))
    expected = run_steps(ALONE)
    for name in ("student", "teacher"):
        assert relative(states[-1][name], expected[name]) < 1e-4
    assert states[-1]["values"][-1] == pytest.approx(expected["values"][-1], rel=1e-4, abs=1e-5)


def test_activation_checkpointing_gives_the_same_gradients(record_property):
    assert_same(run_steps(ALONE, activation_checkpointing=True), run_steps(ALONE), record_property)


@pytest.mark.slow
@pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="torch.compile needs a C++ compiler")
def test_compiled_blocks_give_the_same_gradients(record_property):
    assert_same(run_steps(ALONE, compile=True), run_steps(ALONE), record_property)


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{"activation_checkpointing": True}, {"parallel": "ddp"}, {"parallel": "fsdp"}])
def test_a_run_goes_on_compiled_and_not(settings, record_property):
    """A step as it is, a compiled one, and another as it is: the same names, the same weights to rounding."""
    states = []
    for number, on in enumerate([False, True, False]):
        more = {"state": states[-1] if states else None, "compile": on, "backend": "aot_eager", **settings}
        if "parallel" in settings:
            states.append(on_ranks(2, run_steps_on_a_rank, steps=[number, number + 1], **more))
        else:
            states.append(run_steps(ALONE, steps=range(number, number + 1), **more))
    expected = run_steps(ALONE)
    for name in ("student", "teacher"):
        assert {*map(tuple, (state[name] for state in states))} == {tuple(expected[name])}
        assert relative(states[-1][name], expected[name]) < 1e-4
    assert [state["values"][0] for state in states] == [
        pytest.approx(v, rel=1e-4, abs=1e-5) for v in expected["values"]
    ]


def test_auto_compiles_on_a_gpu_in_long_runs():
    assert should_compile(True, "cpu", 1) and should_compile("auto", "cuda", STEPS_THAT_PAY)
    assert not should_compile("auto", "cuda", STEPS_THAT_PAY - 1)
    assert not should_compile("auto", "cpu", STEPS_THAT_PAY) and not should_compile(False, "cuda", STEPS_THAT_PAY)


@pytest.mark.slow
def test_without_a_compiler_the_blocks_run_as_they_are_and_that_is_said(caplog, record_property):
    torch._dynamo.reset()
    missing = {"cpp.cxx": ("/nowhere/g++",), "force_disable_caches": True}
    with torch._inductor.config.patch(missing), caplog.at_level("INFO"):
        assert_same(run_steps(ALONE, compile=True), run_steps(ALONE), record_property)
    assert caplog.text.count("--compile: torch.compile fails here, so blocks run uncompiled: ") == 1


def test_micro_batches_are_the_batches_in_pieces():
    batches = GlobalBatches([10, 14], 8, 2, seed=3, rank=1, world=2)
    pieces = list(MicroBatches(batches, 2))
    assert len(pieces) == len(MicroBatches(batches, 2)) == 12 and all(len(piece) == 2 for piece in pieces)
    assert [pieces[i] + pieces[i + 1] for i in range(0, 12, 2)] == list(batches)


def test_micro_batches_must_divide():
    with pytest.raises(ValueError, match="--accumulate 3: must divide the 8 images"):
        MicroBatches(GlobalBatches([20], 8, 1, seed=0), 3)
    with pytest.raises(ValueError, match="--accumulate must be at least 1"):
        load(TrainConfig, {"shards": "-", "classifier": "-", "output": "-", "accumulate": 0})
