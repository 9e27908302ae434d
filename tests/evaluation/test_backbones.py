"""`must backbones`: models ranked without labels, on the bundled digits and model."""

import json
import re
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from must.api.cli import main
from must.api.demo import CLASSES, asset_folder
from must.evaluation.backbones import dispersity


@pytest.fixture(scope="module")
def noisy(tmp_path_factory):
    """The bundled model with noise in its image tower."""
    folder = tmp_path_factory.mktemp("noisy") / "model"
    shutil.copytree(asset_folder(), folder)
    file, generator = folder / "open_clip_model.safetensors", torch.Generator().manual_seed(0)
    weights = {
        name: value + 1.5 * value.std() * torch.randn(value.shape, generator=generator).to(value.dtype)
        if name.startswith("visual.") and value.ndim > 1
        else value
        for name, value in load_file(file).items()
    }
    save_file(weights, file)
    return folder


def test_the_better_model_is_named_with_its_accuracy_beside_it(digits, noisy, tmp_path, capsys):
    models, output = f"{noisy},{asset_folder()}", tmp_path / "found.json"
    arguments = ["backbones", str(digits.images / "test"), "--classes", ",".join(CLASSES), "--models", models]
    main([*arguments, "--labels", "folder", "--most", "60", "--output", str(output)])
    found = json.loads(output.read_text())
    best, worst = found["models"]
    assert found["best"] == best["model"] == str(asset_folder()) and found["images"] == 60
    assert best["score"] > worst["score"] and best["accuracy"] > worst["accuracy"] + 0.2
    assert f"most promising without labels, on 60 images: --model {asset_folder()}" in capsys.readouterr().out


def test_dispersity_is_one_for_sure_and_many_classes_and_low_otherwise():
    sure = torch.eye(10).repeat(5, 1)
    one, unsure = torch.eye(10)[:1].repeat(50, 1), torch.full((50, 10), 0.1)
    assert dispersity(sure) == pytest.approx(1)
    assert dispersity(one) == pytest.approx(10**-0.5) and dispersity(unsure) == pytest.approx(0.1)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"--models": "one"}, "--models: give two or more"),
        ({"--models": "no-such,neither"}, "no-such"),
        ({"--classes": "cat,dog", "--labels": "folder"}, "its label '[a-z]+' is no class of --classes"),
    ],
)
def test_wrong_input_is_one_line(digits, tmp_path, changes, message, capsys):
    output, model = tmp_path / "found.json", asset_folder()
    flags = {"--classes": ",".join(CLASSES), "--models": f"{model},{model}/", "--output": str(output), **changes}
    with pytest.raises(SystemExit) as exit:
        main(["backbones", str(digits.images / "test"), *[word for pair in flags.items() for word in pair]])
    error = capsys.readouterr().err.strip().splitlines()
    assert exit.value.code == 2 and re.search(message, error[-1]) and not output.exists()
