"""What training chooses by the machine: device, threads, loaders, precision."""

import shutil
from functools import partial

import pytest
import torch

from must.model import distributed
from must.model.distributed import MOST_LOADERS, can_multiply_bf16, count_loader_processes, divide_cores, pick_device
from must.training.checkpoint import TrainProgress
from must.training.trainer import Trainer
from tests.training.lives import training
from tests.training.step_ranks import ALONE

config = partial(training, epochs=1, batch_size=25, seed=1, log_every=2)


@pytest.mark.parametrize(
    "cores, processes, small, large, on_gpu",
    [(1, 1, (1, 1), (1, 1), 1), (2, 1, (1, 2), (2, 1), 1), (2, 2, (1, 1), (1, 1), 1), (8, 1, (7, 2), (8, 1), 7),
     (96, 8, (11, 2), (12, 1), 11), (96, 2, (47, 2), (48, 1), MOST_LOADERS), (4, 8, (1, 1), (1, 1), 1)],
)  # fmt: skip
def test_threads_and_loaders_follow_the_cores_and_the_model(monkeypatch, cores, processes, small, large, on_gpu):
    """(threads, loaders) of one of so many processes, with the bundled tiny ViT and with ViT-B/16, on a CPU."""
    monkeypatch.setattr(distributed, "count_cores", lambda: cores)
    monkeypatch.setattr(distributed, "can_multiply_bf16", lambda: True)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
    assert divide_cores(1e8) == (*small, "fp32")
    assert divide_cores(1.4e11) == (*large, "bf16")
    assert count_loader_processes() == on_gpu


def test_the_processor_says_whether_it_multiplies_bf16(tmp_path):
    for flags, expected in (("avx2 avx512f", False), ("avx512f avx512_bf16", True), ("amx_bf16 amx_tile", True)):
        (tmp_path / "cpuinfo").write_text(f"processor\t: 0\nflags\t\t: fpu {flags} sse\nbugs\t\t:\n")
        assert can_multiply_bf16(tmp_path / "cpuinfo") == expected
    assert not can_multiply_bf16(tmp_path / "none")


@pytest.mark.parametrize(
    "progress, threads, precision",
    [({}, 3, "fp32"), ({"step": 3, "threads": 2, "precision": "bf16"}, 2, "bf16"),
     ({"step": 3, "threads": 64, "precision": "fp32"}, 4, "fp32")],
)  # fmt: skip
def test_a_run_that_goes_on_keeps_threads_and_precision(digits, tmp_path, monkeypatch, progress, threads, precision):
    """Those of its checkpoint, but never more threads than cores."""
    monkeypatch.setattr(distributed, "count_cores", lambda: 4)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    trainer = Trainer(config(digits, tmp_path), ALONE)
    trainer.state.progress = TrainProgress(**progress)
    trainer.choose()
    kept = trainer.state.progress
    assert (torch.get_num_threads(), trainer.must_step.precision) == (kept.threads, kept.precision)
    assert (kept.threads, kept.precision) == (threads, precision)


def test_loaders_leave_half_of_the_shared_memory(monkeypatch, tmp_path):
    monkeypatch.setattr(distributed, "count_cores", lambda: 12)
    free = shutil.disk_usage(tmp_path).free
    assert count_loader_processes(free // 9, tmp_path) == 4
    assert count_loader_processes(2 * free, tmp_path) == 1
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert count_loader_processes(free // 9, tmp_path) == 2
    monkeypatch.delenv("LOCAL_WORLD_SIZE")
    assert count_loader_processes(1000, tmp_path) == count_loader_processes(free, tmp_path / "none") == 11


def test_the_device_is_cuda_then_mps_then_the_cpu(monkeypatch):
    found = [pick_device("auto").type]
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    found.append(pick_device("auto").type)
    monkeypatch.setenv("WORLD_SIZE", "2")
    found.append(pick_device("auto").type)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert [*found, str(pick_device("auto"))] == ["cpu", "mps", "cpu", "cuda:1"]
