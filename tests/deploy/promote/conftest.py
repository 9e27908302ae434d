"""The registries that promotions are tried on."""

import pytest


@pytest.fixture(params=["local", "bucket"])
def registry(request, tmp_path):
    """A registry's URI: a folder, or a bucket on a real server of the protocol."""
    if request.param == "local":
        return str(tmp_path / "registry")
    return request.getfixturevalue("bucket_server").uri + "/registry"
