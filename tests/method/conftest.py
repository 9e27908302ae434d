import pytest
import torch


@pytest.fixture(autouse=True)
def one_thread():
    """The models are so small that threads cost more than they bring; some tests choose others."""
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(1)
