from pathlib import Path

import pytest

from must.config import ExportConfig
from must.export.onnx import export


@pytest.fixture(scope="session")
def exported(digits, tmp_path_factory):
    """(result, folder) of a float32 export, checked on shard images."""
    folder = tmp_path_factory.mktemp("onnx")
    result = export(ExportConfig(model=digits.adapted, output=str(folder), shards=digits.shards, images=40))
    return result, Path(folder)
