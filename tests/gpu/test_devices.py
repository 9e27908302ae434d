"""Every command that runs a model keeps to one device: on a pretended GPU, which refuses what CUDA refuses."""

import csv
import json
import subprocess
import sys

import pytest

from must.api.demo import asset_folder
from tests.common import ROOT

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


def run(*arguments):
    done = subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_pretended_gpu_refuses_what_cuda_refuses():
    *refused, last = run("-c", CHECKS).splitlines()
    assert [line.split(":")[0] for line in refused[:5]] == ["Expected all tensors to be on the same device"] * 5
    assert refused[5].startswith("can't convert cuda:0") and len(refused) == 6
    assert last == "cuda:0 cpu cuda:0 [1.0, 1.0] 4.0 cpu"


@pytest.mark.slow
def test_every_command_keeps_to_one_device_on_a_gpu(digits, tmp_path):
    work, corrections, model = str(tmp_path / "work"), tmp_path / "corrections.csv", str(tmp_path / "model")
    photos, classes = str(digits.images), str(digits.images.parent / "classes.yaml")
    adapt = ["adapt", photos, "--classes", classes, "--model", str(asset_folder()), "--output", work, "--train", "no"]
    data = ["--shards", digits.shards, "--classifier", digits.classifier]
    settings = ["--preset", "digits", "--epochs", "1", "--accumulate", "2", "--pseudo-labels", "propagated"]
    run("-m", "tests.gpu.pretend", json.dumps([adapt]))
    with open(f"{work}/labels/predictions.csv", newline="") as file:
        labels = [(row["image"], row["class"]) for row in csv.DictReader(file)]
    with corrections.open("w", newline="") as file:
        csv.writer(file).writerows([("image", "class"), *labels[::9]])
    commands = [
        ["review", work, "--add", str(corrections)],
        ["refine", work],
        ["evaluate", work],
        ["refine", work, "--classes", classes],
        ["predict", photos, "--model", f"{work}/model"],
        ["train", *data, *settings, "--output", model],
        ["evaluate", "--model", model, "--baseline", digits.classifier, "--shards", digits.shards, "--output", model],
    ]
    shown = run("-m", "tests.gpu.pretend", json.dumps(commands))
    assert f"using {len(labels[::9])} answers" in shown and f"-> {model}" in shown
