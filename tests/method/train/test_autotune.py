"""What training chooses itself: loaders by the machine, micro-batches by the GPU's memory; neither changes a result."""

import shutil
from functools import partial

import pytest
import torch

from must.base.parameters import load
from must.config import TrainConfig
from must.data.image.preprocess import Preprocess
from must.method.distributed import cpu
from must.method.distributed.cpu import MOST_LOADERS, division, loader_processes, multiplies_bf16
from must.method.distributed.process_group import pick_device
from must.method.train.autotune import MEMORY_SHARE, blank, choose_micro_batches, fewest_micro_batches
from must.method.train.settings import StepSettings
from must.method.train.step import MustStep
from must.method.train.train_state import TrainProgress
from must.method.train.trainer import Trainer
from tests.golden import golden_model
from tests.method.train.lives import training
from tests.method.train.test_step import ALONE

config = partial(training, epochs=1, batch_size=25, seed=1, log_every=2)


def golden_step():
    settings = load(TrainConfig, {"shards": "-", "classifier": "-", "output": "-"})
    return MustStep(golden_model(), Preprocess(size=32), StepSettings.of(settings), ALONE, 3, 2)


@pytest.mark.parametrize(
    "cores, processes, small, large, on_gpu",
    [(1, 1, (1, 1), (1, 1), 1), (2, 1, (1, 2), (2, 1), 1), (2, 2, (1, 1), (1, 1), 1), (8, 1, (7, 2), (8, 1), 7),
     (96, 8, (11, 2), (12, 1), 11), (96, 2, (47, 2), (48, 1), MOST_LOADERS), (4, 8, (1, 1), (1, 1), 1)],
)  # fmt: skip
def test_threads_and_loaders_follow_the_cores_of_a_process_and_the_model(
    monkeypatch, cores, processes, small, large, on_gpu
):
    """(threads, loaders) of the bundled tiny ViT and of ViT-B/16, on a CPU."""
    monkeypatch.setattr(cpu, "cores", lambda: cores)
    monkeypatch.setattr(cpu, "multiplies_bf16", lambda: True)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
    assert division(1e8) == (*small, "fp32")
    assert division(1.4e11) == (*large, "bf16")
    assert loader_processes() == on_gpu


def test_the_processor_says_whether_it_multiplies_bf16(tmp_path):
    for flags, expected in (("avx2 avx512f", False), ("avx512f avx512_bf16", True), ("amx_bf16 amx_tile", True)):
        (tmp_path / "cpuinfo").write_text(f"processor\t: 0\nflags\t\t: fpu {flags} sse\nbugs\t\t:\n")
        assert multiplies_bf16(tmp_path / "cpuinfo") == expected
    assert not multiplies_bf16(tmp_path / "none")


@pytest.mark.parametrize(
    "progress, threads, precision",
    [({}, 3, "fp32"), ({"step": 3, "threads": 2, "precision": "bf16"}, 2, "bf16"), ({"step": 3}, 3, "fp32"),
     ({"step": 3, "threads": 64, "precision": "fp32"}, 4, "fp32")],
)  # fmt: skip
def test_a_run_that_goes_on_keeps_its_threads_and_precision(
    digits, tmp_path, monkeypatch, progress, threads, precision
):
    """Those of its checkpoint, of an earlier version's the old rule; never more threads than cores."""
    monkeypatch.setattr(cpu, "cores", lambda: 4)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    trainer = Trainer(config(digits, tmp_path), ALONE)
    trainer.state.progress = TrainProgress(**progress)
    trainer.choose()
    kept = trainer.state.progress
    assert (torch.get_num_threads(), trainer.must_step.precision) == (kept.threads, kept.precision)
    assert (kept.threads, kept.precision) == (threads, precision)


def test_loaders_leave_half_of_the_shared_memory(monkeypatch, tmp_path):
    monkeypatch.setattr(cpu, "cores", lambda: 12)
    free = shutil.disk_usage(tmp_path).free
    assert loader_processes(free // 9, tmp_path) == 4
    assert loader_processes(2 * free, tmp_path) == 1
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert loader_processes(free // 9, tmp_path) == 2
    monkeypatch.delenv("LOCAL_WORLD_SIZE")
    assert loader_processes(1000, tmp_path) == loader_processes(free, tmp_path / "none") == 11


def test_a_number_counts_and_a_word_is_refused(digits, tmp_path):
    assert config(digits, tmp_path, workers="3").workers == 3
    assert load(TrainConfig, {"shards": "s", "classifier": "c", "output": "o"}).workers == "auto"
    for name in ("workers", "accumulate"):
        with pytest.raises(ValueError, match=f"--{name}: expected a whole number, got 'much', which is not auto eith"):
            config(digits, tmp_path, **{name: "much"})
    with pytest.raises(ValueError, match="--workers must be at least 0"):
        config(digits, tmp_path, workers=-1)


@pytest.mark.parametrize(
    "free, pieces",
    [(1100 / MEMORY_SHARE, 1), (1099 / MEMORY_SHARE, 2), (350 / MEMORY_SHARE, 4), (101 / MEMORY_SHARE, 1000)],
)
def test_the_fewest_micro_batches_that_fit(free, pieces):
    """Of 1,000 images that take a byte each, besides a hundred."""
    assert fewest_micro_batches(1000, 100, 1, free + 1e-6) == pieces


def test_a_model_that_does_not_fit_is_one_line():
    with pytest.raises(ValueError, match=r"^--accumulate auto: not even one image a step fits: it takes 5 GB") as error:
        fewest_micro_batches(64, 4e9, 1e9, 5e9)
    assert "\n" not in str(error.value)


def test_on_a_cpu_it_is_one_piece_and_a_run_that_goes_on_keeps_its_own():
    method = golden_step()
    assert [choose_micro_batches(method, 5, 24, before) for before in (0, 24, 6, 5)] == [1, 1, 4, 1]


def test_a_run_goes_on_with_the_micro_batches_of_its_checkpoint(digits, tmp_path):
    """Sums in another order are not the same to the bit."""
    trainer = Trainer(config(digits, tmp_path, accumulate="auto"), ALONE)
    trainer.state.progress = TrainProgress(step=3, micro_batch=5)
    trainer.choose()
    assert (trainer.micro_batches, trainer.state.progress.micro_batch) == (5, 5)


def test_a_trial_changes_no_weight():
    method = golden_step()
    before = {key: value.clone() for key, value in method.student.state_dict().items()}
    losses, _ = method.differentiate([blank(4, method.preprocess.size, 3)])
    assert torch.isfinite(losses.total) and any(p.grad is not None for p in method.student.parameters())
    assert method.class_balance is None
    assert all(torch.equal(before[key], value) for key, value in method.student.state_dict().items())


def test_the_device_is_cuda_then_mps_then_the_cpu(monkeypatch):
    found = [pick_device("auto").type]
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    found.append(pick_device("auto").type)
    monkeypatch.setenv("WORLD_SIZE", "2")
    found.append(pick_device("auto").type)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert [*found, str(pick_device("auto"))] == ["cpu", "mps", "cpu", "cuda:1"]
