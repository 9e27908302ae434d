import pytest
import torch


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
