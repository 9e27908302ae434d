"""Every command that runs a model keeps to one device: on a pretended GPU, which refuses what CUDA refuses. And the
settings of the GPU tests are valid: machines without a GPU skip those tests."""

import csv
import json
import sys
from pathlib import Path

import pytest

from must.api.cli import build_parser
from must.api.demo import find_assets
from must.api.stages import configure
from tests.common import ROOT, printed, read_csv
from tests.gpu import test_gpu as gpu

CHECKS = """
import torch
from tests.gpu.pretend import install
install()
gpu, cpu = torch.ones(2, 2).to("cuda"), torch.ones(2, 2)
mixes = lambda: gpu + cpu, lambda: cpu[gpu.argmax(1)], lambda: cpu.add_(gpu[0, 0]), lambda: torch.cat([cpu, gpu])
for mix in (*mixes, lambda: gpu.__setitem__(gpu > 0, cpu.flatten()), gpu.numpy):
    try:
        mix()
    except (RuntimeError, TypeError) as error:
        print(error)
layer = torch.nn.Linear(2, 1).to("cuda")
(layer(gpu).sum() + gpu[torch.tensor([0])].sum() + torch.zeros(1, device="cuda")).sum().backward()
print(gpu.device, gpu.cpu().device, layer.weight.grad.device, gpu[0].tolist(), gpu.sum().item(), cpu.device)
"""


def test_the_pretended_gpu_refuses_what_cuda_refuses():
    *refused, last = printed(sys.executable, "-c", CHECKS, cwd=ROOT).splitlines()
    assert [line.split(":")[0] for line in refused[:5]] == ["Expected all tensors to be on the same device"] * 5
    assert refused[5].startswith("can't convert cuda:0") and len(refused) == 6
    assert last == "cuda:0 cpu cuda:0 [1.0, 1.0] 4.0 cpu"


@pytest.mark.slow
def test_every_command_keeps_to_one_device_on_a_gpu(digits, tmp_path):
    work, corrections, model = str(tmp_path / "work"), tmp_path / "corrections.csv", str(tmp_path / "model")
    photos, classes = str(digits.images), str(digits.images.parent / "classes.yaml")
    adapt = ["adapt", photos, "--classes", classes, "--model", str(find_assets()), "--output", work, "--train", "no"]
    data = ["--shards", digits.shards, "--classifier", digits.classifier]
    settings = ["--preset", "digits", "--epochs", "1", "--accumulate", "2", "--pseudo-labels", "propagated"]
    pretend = [sys.executable, "-m", "tests.gpu.pretend"]
    printed(*pretend, json.dumps([adapt]), cwd=ROOT)
    labels = [(row["image"], row["class"]) for row in read_csv(Path(work, "labels/predictions.csv"))]
    with corrections.open("w", newline="") as file:
        csv.writer(file).writerows(
            [("image", "class"), *labels[::9], *((name, "none of these") for name, _ in labels[1::9])]
        )
    report = str(tmp_path / "report")
    commands = [
        ["review", work, "--add", str(corrections)],
        ["refine", work],
        ["evaluate", work],
        ["predict", photos, "--model", f"{work}/model"],
        ["train", *data, *settings, "--output", model],
        ["evaluate", "--model", model, "--baseline", digits.classifier, "--shards", digits.shards, "--output", report],
    ]
    shown = printed(*pretend, json.dumps(commands), cwd=ROOT)
    assert f"using {len(labels[::9]) + len(labels[1::9])} answers" in shown and f"report: {report}/" in shown


def test_must_train_accepts_the_settings_of_the_gpu_tests(digits, tmp_path):
    assert all(gpu.config_of(digits, "cpu", **settings).preset == "digits" for settings in gpu.SETTINGS)
    flags = gpu.command(digits, tmp_path, 1, **{"batch-size": 16})
    values = vars(build_parser().parse_args(flags[flags.index("train") :]))
    assert values.pop("config_file") is None
    assert configure(values.pop("command"), values).to_dict()["epochs"] == 8
