"""The settings of the GPU tests are valid: machines without a GPU skip those tests."""

from must.api.cli import build_parser
from must.api.run import configure
from tests.gpu import test_gpu as gpu


def test_must_train_accepts_the_settings_of_the_gpu_tests(digits, tmp_path):
    assert all(gpu.config_of(digits, "cpu", **settings).preset == "digits" for settings in gpu.SETTINGS)
    flags = gpu.command(digits, tmp_path, 1, **{"batch-size": 16})
    values = vars(build_parser().parse_args(flags[flags.index("train") :]))
    assert values.pop("config_file") is None
    assert configure(values.pop("command"), values).to_dict()["epochs"] == 8
