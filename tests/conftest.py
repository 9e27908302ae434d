"""Fixtures for all tests, and a folder for what all of a run's processes (pytest-xdist's) share."""

# ruff: noqa: E402

import gc
import itertools
import json
import os
import shutil
import socketserver
import sys
import tempfile
from pathlib import Path

from tests.machine import forget

# Before torch is imported: with a process a core, more threads would wait for each other in busy loops.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Before anything is: Kubernetes' client reads KUBECONFIG when it is imported.
forget()
sys.dont_write_bytecode = False
# A server in this process hears of its end at its next look, which is twice a second otherwise: its test would wait.
socketserver.BaseServer.serve_forever.__defaults__ = (0.02,)

import pytest
from hypothesis import HealthCheck, settings

from must.base.console import attach
from must.base.processes import count_cores
from tests.gcs import gcs_process
from tests.once import SHARED, made_once
from tests.stores import azurite_process, bucket_server, moto_process

attach()  # the tests are a program: what it logs is on the console

__all__ = ["azurite_process", "bucket_server", "digits", "gcs_process", "moto_process"]


def pytest_addoption(parser):
    text = "run the tests of buckets alone, on that store's; may be repeated"
    parser.addoption("--store", action="append", choices=["gs", "s3", "az"], help=text)


FIRST = [
    line.split()
    for line in (
        # a fork server that has imported torch
        "training/test_train.py training/test_distributed.py training/test_step.py training/test_plan.py",
        # torch's exporter to ONNX
        "exporting/test_export.py exporting/test_takeaway.py exporting/test_export_memory.py prediction/test_bundle.py",
        # a fork server, too
        "training/test_kills.py api/test_kills.py",
        # an S3 server, and the clients of three stores
        "base/storage/test_storage.py base/storage/test_refusals.py",
        # a `must serve`
        "serving/test_serve.py serving/test_hostile.py",
        "api/test_day_two.py",
        "memory/test_answers.py",
        "memory/test_refine.py",
        "data/shards/test_shard_restart.py",
        "pipeline/test_cluster.py",
        "pipeline/test_run.py",
        "docs/test_walk.py",
        "release/test_wheel.py",
        "components/test_outliving.py",
        "model/test_full_size.py",
        "pods/test_kills.py",
    )
]
"""Files that begin first: one that began last would run alone while the other processes have nothing left to do. Those
of a line stay together on one process, which has what they need once."""


@pytest.fixture(autouse=True)
def one_thread():
    """The models are so small that threads cost more than they bring; some tests choose others."""
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)
    yield
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)


@pytest.fixture
def below(record_property):
    """below(limit, what, value): the value is, and the report of the tests has it."""

    def check(limit, what, value):
        record_property(what, value)
        assert value < limit, what

    return check


def pytest_configure(config):
    if not hasattr(config, "workerinput"):  # the process that starts the others, which inherit its environment
        folder = tempfile.mkdtemp(prefix="must-tests-")
        os.environ[SHARED] = folder
        config.add_cleanup(lambda: shutil.rmtree(folder, ignore_errors=True))


def pytest_generate_tests(metafunc):
    own = any("bucket_server" in mark.args[0] for mark in metafunc.definition.iter_markers("parametrize"))
    if not own and "bucket_server" in metafunc.fixturenames and (stores := metafunc.config.getoption("store")):
        metafunc.parametrize("bucket_server", stores, indirect=True)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config):
    """What --numprocesses auto means: one more than there are cores, as tests also wait. By our own count of them:
    xdist's needs psutil and sees no container's limit."""
    return count_cores() + 1


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """--dist loadfile, with the files of a line of FIRST as if they were one."""
    from xdist.scheduler import LoadFileScheduling

    together = {f"tests/{name}": files[0] for files in FIRST for name in files}

    class Files(LoadFileScheduling):
        def _split_scope(self, nodeid):
            file = super()._split_scope(nodeid)
            return together.get(file, file)

    return Files(config, log) if config.getvalue("dist") == "loadfile" else None


def pytest_collection_finish(session):
    gc.collect()
    gc.freeze()  # what was imported stays: no later collection need look through it


def pytest_collection_modifyitems(config, items):
    if config.getoption("store"):
        items[:] = [item for item in items if "bucket_server" in item.fixturenames]
    ranks = {Path(__file__).parent / name: rank for rank, name in enumerate(itertools.chain(*FIRST))}
    items.sort(key=lambda item: ranks.get(item.path, len(ranks)))


@pytest.fixture(scope="session")
def digits():
    """Paths of a small real task, made once a run: images, shards, a classifier file, two bundles. Only read them."""
    from tests.evaluation.digits import digits

    return digits()


def export_once(digits, name, **more):
    """(result, folder) of a float32 export checked on shard images."""
    from must.config import ExportConfig
    from must.exporting.export import export

    def make(folder):
        values = {"model": digits.adapted, "shards": digits.shards, "limit": 40, "output": str(folder / "onnx")}
        (folder / "result.json").write_text(json.dumps(export(ExportConfig(**values, **more))))

    folder = made_once(name, make)
    return json.loads((folder / "result.json").read_text()), folder / "onnx"


@pytest.fixture(scope="session")
def exported(digits):
    """(result, folder) of an export. Only read it."""
    return export_once(digits, "exported")


@pytest.fixture(scope="session")
def embedded(digits):
    """The folder of an export with --embeddings. Only read it."""
    return export_once(digits, "embedded", embeddings=True)[1]


@pytest.fixture(scope="session")
def pictures(digits):
    """(path, bytes) of all test images, as PNG."""
    return [(path, path.read_bytes()) for path in sorted((digits.images / "test").rglob("*.png"))]


@pytest.fixture
def record_property(record_property):
    """pytest's own, for numpy's numbers too, which pytest-xdist cannot send."""
    return lambda name, value: record_property(name, value.item() if hasattr(value, "item") else value)


# The same examples each time, however slow the machine: a test is not to fail now and then.
settings.register_profile("steady", derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))
settings.load_profile("steady")
