"""The registries that promotions are tried on."""

import pytest


@pytest.fixture
def registry(request, tmp_path):
    """A registry's URI: a folder, or for EVERYWHERE also a bucket on a real server of the protocol."""
    if getattr(request, "param", "local") == "local":
        return str(tmp_path / "registry")
    return request.getfixturevalue("bucket_server").uri + "/registry"
