"""CIFAR-10 and Oxford-IIIT Pets in the files that are published, with few drawn pictures, where torchvision looks."""

from __future__ import annotations

import hashlib
import io
import pickle
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
from torchvision.datasets import CIFAR10, OxfordIIITPet

from tests import zoo

CIFAR = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
PETS = [("Abyssinian", 1), ("american_bulldog", 2), ("Bengal", 1)]  # cats are written large


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None: ...


@contextmanager
def published(folder: Path, monkeypatch: Any) -> Iterator[None]:
    """12 pictures to test with, each; torchvision fetches these files from a server, and asks for their checksums."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder))) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        publish(folder, f"http://127.0.0.1:{server.server_port}", monkeypatch)
        yield
        server.shutdown()


def publish(folder: Path, address: str, monkeypatch: Any) -> None:
    batches = {f"data_batch_{number}": pickled(number, 18) for number in range(1, 6)} | {"test_batch": pickled(0, 12)}
    batches["batches.meta"] = pickle.dumps({"label_names": CIFAR, "num_vis": 3072, "num_cases_per_batch": 18})
    place = CIFAR10.base_folder
    archive = tar(folder / CIFAR10.filename, {f"{place}/{name}": data for name, data in batches.items()})
    for name, value in {
        "url": f"{address}/{archive.name}",
        "tgz_md5": md5(archive.read_bytes()),
        "train_list": [[name, md5(batches[name])] for name, _ in CIFAR10.train_list],
        "test_list": [[name, md5(batches[name])] for name, _ in CIFAR10.test_list],
        "meta": CIFAR10.meta | {"md5": md5(batches["batches.meta"])},
    }.items():
        monkeypatch.setattr(CIFAR10, name, value)
    names = [f"{breed}_{number}" for number in range(1, 9) for breed, _ in PETS]
    lines = [f"{name} {at % 3 + 1} {PETS[at % 3][1]} 1\n" for at, name in enumerate(names)]
    images = {f"images/{name}.jpg": zoo.encoded(zoo.picture(at), "JPEG") for at, name in enumerate(names)}
    notes = {"list": ["#Image CLASS-ID SPECIES BREED ID\n", *lines], "trainval": lines[:12], "test": lines[12:]}
    annotations = {f"annotations/{name}.txt": "".join(text).encode() for name, text in notes.items()}
    archives = [tar(folder / "images.tar.gz", images), tar(folder / "annotations.tar.gz", annotations)]
    sources = tuple((f"{address}/{one.name}", md5(one.read_bytes())) for one in archives)
    monkeypatch.setattr(OxfordIIITPet, "_RESOURCES", sources)


def pickled(seed: int, count: int) -> bytes:
    planes = [np.asarray(zoo.picture(seed + n, 32, 32)).transpose(2, 0, 1).ravel() for n in range(count)]
    return pickle.dumps({"data": np.stack(planes), "labels": [n % 10 for n in range(count)], "batch_label": "made"})


def tar(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return path


def md5(data: bytes) -> str:
    return hashlib.md5(data).hexdigest()
