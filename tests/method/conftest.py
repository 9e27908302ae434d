import pytest
import torch

from must.api import cli


@pytest.fixture(autouse=True)
def one_thread():
    """The models are so small that threads cost more than they bring; some tests choose others."""
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(1)


@pytest.fixture
def below(record_property):
    """below(limit, what, value): the value is, and the report of the tests has it."""

    def check(limit, what, value):
        record_property(what, value)
        assert value < limit, what

    return check


@pytest.fixture
def refusal(capfd):
    """refusal(stage, flags): the one line with which `must STAGE` ends for wrong input."""

    def format_error(stage, flags):
        with pytest.raises(SystemExit) as end:
            cli.main([stage, *(part for name, value in flags.items() for part in (f"--{name}", value))])
        (line,) = capfd.readouterr().err.splitlines()
        assert end.value.code == 2 and line.startswith(f"must {stage}: ")
        return line

    return format_error
