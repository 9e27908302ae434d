"""Parameters: flags over file over default; whatever is wrong is refused by name, in one line."""

import re
from dataclasses import fields

import pytest

from must.base.errors import UserError
from must.base.parameters import list_parameters, load, read_yaml
from must.config import PredictConfig, ShardConfig, TrainConfig
from must.table import COMMANDS

REQUIRED = {"shards": "s", "classifier": "c", "output": "o"}


def test_flags_win_over_the_file_and_the_file_over_the_defaults(tmp_path):
    file = tmp_path / "train.yaml"
    file.write_text("lr: 2e-5\nepochs: 7\nstrong-scale: [0.5, 1]\n")
    config = load(TrainConfig, read_yaml(TrainConfig, str(file)) | {**REQUIRED, "epochs": "9"})
    assert (config.lr, config.epochs, config.strong_scale, config.batch_size) == (2e-5, 9, [0.5, 1.0], 1024)
    assert config.passed == {*REQUIRED, "lr", "epochs", "strong_scale"} and "passed" not in config.to_dict()


def test_numbers_of_a_pipeline_arrive_as_floats_and_are_whole_again():
    assert load(TrainConfig, {**REQUIRED, "epochs": 2.0}).epochs == 2


@pytest.mark.parametrize(
    "values, message",
    [
        ({"epoch": 3}, "unknown name 'epoch'; did you mean 'epochs'"),
        (
            {"zzz": 3},
            "unknown name 'zzz'; known: shards, index_sha256, classifier, split, preset, epochs, "
            "batch_size, accumulate, shuffle_window, workers, device, precision and ",
        ),
        ({"epochs": "three"}, "--epochs: expected a whole number, got 'three'"),
        ({"epochs": 2.5}, "--epochs: expected a whole number"),
        ({"epochs": True}, "--epochs: expected a whole number"),
        ({"epochs": 0}, "--epochs must be at least 1 (got 0)"),
        ({"lr": "nan"}, "--lr: expected a number"),
        ({"lr": -1}, "--lr must be at least 0"),
        ({"layer_decay": 1.5}, "--layer-decay must be above 0 and at most 1 (got 1.5)"),
        ({"ema_decay": 1.5}, "--ema-decay must be at least 0 and at most 1 (got 1.5)"),
        ({"mask_ratio": 0}, "--mask-ratio must be above 0 and below 1"),
        ({"confidence_threshold": 1}, "--confidence-threshold"),
        ({"strong_scale": "0.3"}, "--strong-scale needs two areas"),
        ({"strong_scale": 3}, "--strong-scale: expected a list"),
        ({"precision": "fp8"}, "--precision must be one of auto, fp32, bf16 (got 'fp8')"),
        ({"resume": "perhaps"}, "--resume: expected true or false"),
        ({"shuffle_window": 0}, "--shuffle-window must be at least 1"),
        ({"output": "a\0b"}, "--output: holds a NUL character"),
    ],
)
def test_wrong_values_are_named(values, message):
    with pytest.raises(UserError, match=rf"\A.*{re.escape(message)}.*\Z"):
        load(TrainConfig, {**REQUIRED, **values})


def test_missing_ones_are_named():
    with pytest.raises(ValueError, match="missing: --classifier, --output"):
        load(TrainConfig, {"shards": "s"})


@pytest.mark.parametrize(
    "text, message",
    [
        ("lr: [", "not valid YAML: .{0,300}$"),
        ("[" * 100_000, "not valid YAML: .{0,300}$"),
        ("epochs: " + "9" * 5000, "not valid YAML: .{0,300}$"),
        ("when: 2026-99-99", "not valid YAML: .{0,300}$"),
        ("a: \xff", "is no text in UTF-8$"),
        ("- 1\n", "expected 'name: value' lines"),
        ("lrr: 1\n", "did you mean 'lr'"),
        ("lr: 0.1\nepochs: 2\nlr: 0.2\n", "'lr' is defined on line 1 and again on line 3"),
    ],
)
def test_a_bad_file_is_named(tmp_path, text, message):
    file = tmp_path / "train.yaml"
    file.write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match=message) as error:
        read_yaml(TrainConfig, str(file))
    assert str(file) in str(error.value) and "\n" not in str(error.value)


def test_split_shares():
    values = {"source": "a", "output": "b"}
    assert load(ShardConfig, {**values, "split": "train=0.9,test=0.1"}).split == {"train": 0.9, "test": 0.1}
    for split, message in [("train=0.9", "must add up to 1"), ("train", "NAME=VALUE"), ("A b=1", "no split name")]:
        with pytest.raises(ValueError, match=message):
            load(ShardConfig, {**values, "split": split})


def test_every_parameter_says_what_it_is():
    for stage in COMMANDS.values():
        assert stage.help and stage.config.example
        parameters = list_parameters(stage.config)
        assert {one.name for one in parameters} == {one.name for one in fields(stage.config)} - {"passed"}
        for parameter in parameters:
            assert len(parameter.metadata["help"]) > 10, (stage, parameter.name)


def test_a_comma_in_a_files_name_is_part_of_it():
    images = "holiday, 2020.jpg"
    assert load(PredictConfig, {"model": "m", "images": images}).images == [images]
    assert load(PredictConfig, {"model": "m", "images": ["a.jpg", images]}).images == ["a.jpg", images]
