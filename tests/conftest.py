"""Fixtures for all tests, and a folder for what all of a run's processes (pytest-xdist's) share."""

import os
import shutil
import tempfile
from pathlib import Path

# Before torch is imported: with a process a core, more threads would wait for each other in busy loops.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
from hypothesis import HealthCheck, settings

from tests.gcs import gcs_process, gcs_server
from tests.once import SHARED

__all__ = ["digits", "gcs_process", "gcs_server"]


LONGEST = ["pipeline/test_run.py", "train/test_kills.py", "train/test_train.py", "export/test_export.py"]
"""Files that begin first: one that began last would run alone while the other processes have nothing left to do."""


def pytest_configure(config):
    if not hasattr(config, "workerinput"):  # the process that starts the others, which inherit its environment
        folder = tempfile.mkdtemp(prefix="must-tests-")
        os.environ[SHARED] = folder
        config.add_cleanup(lambda: shutil.rmtree(folder, ignore_errors=True))


def pytest_collection_modifyitems(items):
    ranks = {Path(__file__).parent / name: rank for rank, name in enumerate(LONGEST)}
    items.sort(key=lambda item: ranks.get(item.path, len(ranks)))


@pytest.fixture(scope="session")
def digits():
    """Paths of a small real task, made once a run: images, shards, a classifier file, two bundles. Only read them."""
    from tests.evaluate.digits import digits

    return digits()


@pytest.fixture(scope="session")
def exported(digits, tmp_path_factory):
    """(result, folder) of a float32 export, checked on shard images."""
    from must.config import ExportConfig
    from must.export.onnx import export

    folder = tmp_path_factory.mktemp("onnx")
    result = export(ExportConfig(model=digits.adapted, output=str(folder), shards=digits.shards, images=40))
    return result, Path(folder)


@pytest.fixture
def record_property(record_property):
    """pytest's own, for numpy's numbers too, which pytest-xdist cannot send."""
    return lambda name, value: record_property(name, value.item() if hasattr(value, "item") else value)


# The same examples each time, however slow the machine: a test is not to fail now and then. `make fuzz` searches.
settings.register_profile("steady", derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))
settings.load_profile("steady")
