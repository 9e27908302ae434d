"""The registries that promotions are tried on, and what is promoted besides a bundle."""

import pytest

from must.evaluation.result import write_metrics
from tests.deploy.promote.bundles import make_onnx
from tests.evaluation.measured import MEASURED


@pytest.fixture
def registry(request, tmp_path):
    """A registry's URI: a folder, or for EVERYWHERE also a bucket on a real server of the protocol."""
    if getattr(request, "param", "local") == "local":
        return str(tmp_path / "registry")
    return request.getfixturevalue("bucket_server").uri + "/registry"


@pytest.fixture
def made(tmp_path):
    """Flags of an ONNX folder as `must export` writes it, and of metrics."""
    folder = tmp_path / "onnx"
    make_onnx(folder / "model.onnx")
    (folder / "labels.txt").write_text("cat\ndog\n")
    (folder / "MODEL_CARD.md").write_text("# A model card\n")
    write_metrics(str(tmp_path / "metrics.json"), MEASURED)
    return ["--onnx", folder, "--metrics", tmp_path / "metrics.json"]
