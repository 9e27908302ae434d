"""What `must train` writes at its end: the interpolated model with its memory, and the fully trained one beside it."""

from functools import partial

import pytest
import torch
from safetensors.torch import load_file

from must.method.model.description import load_description
from must.method.train import trainer
from must.method.train.trainer import train
from tests.method.train import lives

training = partial(lives.training, epochs=2, batch_size=50, workers=0, seed=1, log_every=2, alpha=0.5)


def weights(folder):
    values = load_file(f"{folder}/model.safetensors")
    return {name: value for name, value in values.items() if not name.startswith("memory.")}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


@pytest.fixture(scope="module")
def trained(digits, tmp_path_factory):
    output = tmp_path_factory.mktemp("trained")
    train(training(digits, output))
    return output


def test_the_model_is_half_way_and_remembers_the_images_and_all_of_it_lies_beside(digits, trained):
    provenance, beside = (load_description(str(folder)).provenance for folder in (trained, trained / "adapted"))
    assert (provenance.selection.alpha, provenance.selection.by) == (0.5, "--alpha")
    assert provenance.selection.check.images == provenance.memory.images == 150 and provenance.memory.answers == 0
    assert beside.selection is None and beside.memory is None and beside.summary == provenance.summary
    start, half, end = (weights(folder)["classifier"] for folder in (digits.zero_shot, trained, trained / "adapted"))
    assert torch.equal(half, torch.lerp(start, end, 0.5)) and not torch.equal(start, end)


@pytest.mark.slow
def test_a_run_that_was_killed_before_its_model_was_written_ends_in_the_same(digits, trained, tmp_path, monkeypatch):
    output = tmp_path / "model"

    class Killed(BaseException):
        pass

    def killed(*_args, **_more):
        raise Killed

    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr(trainer, "build_memory", killed)
        train(training(digits, output))
    assert not (output / "model.json").exists()
    train(training(digits, output))
    for name in ("model.safetensors", "adapted/model.safetensors"):
        assert (output / name).read_bytes() == (trained / name).read_bytes()
    assert train(training(digits, output, alpha=1)).steps and not (output / "adapted").exists()
    assert same(weights(output), weights(trained / "adapted")), "alpha 1 is all of it, and nothing lies beside it"
