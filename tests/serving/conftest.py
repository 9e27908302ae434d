"""A server for the tests of files."""

import pytest

from tests.serving.server import running


@pytest.fixture(scope="session")
def server(exported):
    """With small limits, but patient: the machine may be busy."""
    with running("--model", exported[1], "--name", "digits", "--max-body", 2, "--max-images", 16) as it:
        yield it
