"""One bundle is traced once for all tests here: what torch's exporter makes of it takes it five seconds each time."""

import hashlib
import json
import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict

import onnx
import pytest

from must.model.bundle import Bundle
from tests.once import made_once


@contextmanager
def files_up_to(size: int) -> Iterator[None]:
    """As on a full disk: writing fails beyond `size` bytes of a file."""
    limit, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limit[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, handler)


@pytest.fixture(autouse=True, scope="session")
def traced_once() -> Iterator[None]:
    from must.exporting import graph  # torch's exporter, which processes that collect tests alone do not need

    def to_graph(bundle: Bundle, uint8: bool = False, embeddings: bool = False) -> onnx.ModelProto:
        what = hashlib.sha256(json.dumps([asdict(bundle.description), uint8, embeddings], default=str).encode())
        for part in filter(None, (bundle.model, bundle.memory)):
            for name, value in part.state_dict().items():
                what.update(name.encode() + value.numpy().tobytes())
        made = made_once(
            f"graph-{what.hexdigest()}",
            lambda folder: (folder / "model.onnx").write_bytes(real(bundle, uint8, embeddings).SerializeToString()),
        )
        return onnx.load(made / "model.onnx")

    real = graph.to_graph
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(graph, "to_graph", to_graph)
        yield
