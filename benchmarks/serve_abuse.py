"""The longest wait of a normal client during each kind of abuse, all in one run against one server.

    python benchmarks/serve_abuse.py --model onnx/ [--seconds 10] [--width 4000]

The normal client sends one photo after the other, as JPEG of that width; at the same time a probe requests health and
metrics every tenth of a second. One line per kind of abuse: the normal client's responses, its median and longest wait,
the longest waits for health and metrics, and the server's peak memory. The exit code is 1 if any status is not 200.
"""

from __future__ import annotations

import argparse
import base64
import http.client
import json
import re
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from benchmarks.image_cost import chunk, encode, png, scans, segments, texture, webp_animated

NAME = "photos"


class Client:
    """Repeats a request until the event is set, and records the waits and statuses."""

    def __init__(
        self, port: int, stop: threading.Event, method: str, path: str, body: bytes | None, pause: float
    ) -> None:
        self.waits: list[float] = []
        self.statuses: Counter[object] = Counter()
        self.arguments = port, stop, method, path, body, pause
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()

    def run(self) -> None:
        port, stop, method, path, body, pause = self.arguments
        while not stop.is_set():
            started = time.perf_counter()
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
            try:
                connection.request(method, path, body)
                response = connection.getresponse()
                response.read()
                self.statuses[response.status] += 1
            except (OSError, http.client.HTTPException) as error:
                self.statuses[type(error).__name__] += 1
            finally:
                connection.close()
            self.waits.append(time.perf_counter() - started)
            stop.wait(pause)


def sends(data: bytes, clients: int) -> Callable[[int, threading.Event], None]:
    """`clients` clients, each of which sends these bytes over new connections and reads the response."""

    def client(port: int, stop: threading.Event) -> None:
        while not stop.is_set():
            with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
                connection.sendall(data)
                if data:
                    connection.recv(200)

    def abuse(port: int, stop: threading.Event) -> None:
        for _ in range(clients):
            threading.Thread(target=client, args=(port, stop), daemon=True).start()
        stop.wait()

    return abuse


def infer(file: bytes, count: int) -> bytes:
    """A request with `count` times the same file."""
    data = [base64.b64encode(file).decode()] * count
    tensor = {"name": "image", "datatype": "BYTES", "shape": [count], "data": data}
    return post(f"/v2/models/{NAME}/infer", json.dumps({"inputs": [tensor]}).encode())


def post(path: str, body: bytes) -> bytes:
    return f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body


def connections(count: int) -> Callable[[int, threading.Event], None]:
    """`count` connections that send nothing, opened again when they are closed."""

    def abuse(port: int, stop: threading.Event) -> None:
        open_clients: list[socket.socket] = []
        while not stop.is_set():
            with suppress(OSError):
                open_clients.append(socket.create_connection(("127.0.0.1", port), timeout=5))
            if len(open_clients) > count:
                open_clients.pop(0).close()
                stop.wait(0.002)
        for client in open_clients:
            client.close()

    return abuse


def halves(count: int) -> Callable[[int, threading.Event], None]:
    """`count` connections that send the beginning of a request and no more."""

    def abuse(port: int, stop: threading.Event) -> None:
        clients = []
        for _ in range(count):
            clients.append(socket.create_connection(("127.0.0.1", port), timeout=5))
            clients[-1].sendall(post("/classify", bytes(100_000))[:50_000])
        stop.wait()
        for client in clients:
            client.close()

    return abuse


def kinds() -> dict[str, Callable[[int, threading.Event], None]]:
    photo = encode(texture(1000, 800), "JPEG")
    small = encode(texture(32, 32), "PNG")
    data = b"[" + b"{}," * 5_000_000 + b"{}]"
    objects = b'{"inputs":[{"name":"image","datatype":"UINT8","shape":[1],"data":%s}]}' % data
    return {
        "nothing": lambda port, stop: None,
        "animated WebP of 40 MP, 64 clients": sends(post("/classify", webp_animated(6300, 6300)), 64),
        "PNG RGBA-16 of 40 MP, 64 clients": sends(post("/classify", png(6300, 6300, 16, 6)), 64),
        "progressive JPEG of 40 MP, 64 clients": sends(
            post("/classify", encode(texture(6300, 6300), "JPEG", progressive=True)), 64
        ),
        "JPEG of 90 scans, 20 MP, 64 clients": sends(post("/classify", scans(4500, 4500, 90)), 64),
        "bodies of 16 MB, 64 clients": sends(post("/classify", small + bytes(15_900_000)), 64),
        "16 animated WebP of 36 MP a request, 8 clients": sends(infer(webp_animated(6000, 6000), 16), 8),
        "64 photos of 0.8 MP, 8 clients": sends(infer(photo, 64), 8),
        "connections opened and closed, 50 clients": sends(b"", 50),
        "a JPEG of 64,500 segments, 4 clients": sends(post("/classify", segments(0xFE, b"", 64_500)), 4),
        "a PNG of 21,000 chunks, 4 clients": sends(
            post("/classify", small[:33] + chunk(b"aaAa", b"") * 21_000 + small[33:]), 4
        ),
        "15 MB of JSON that is empty objects, 4 clients": sends(post(f"/v2/models/{NAME}/infer", objects), 4),
        "2,000 silent connections": connections(2000),
        "1,000 clients in the middle of a body": halves(1000),
    }


def peak(process: int) -> float:
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1e3 for line in lines if line.startswith("VmHWM"))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--width", type=int, default=4000)
    options = parser.parse_args()
    command = [sys.executable, "-m", "must", "serve", "--model", options.model, "--name", NAME, "--port", "0"]
    server = subprocess.Popen([*command, "--drain", "0"], stdout=subprocess.PIPE, text=True)
    assert server.stdout
    match = re.search(r":(\d+) ", server.stdout.readline())
    assert match
    port, photo, passed = int(match[1]), encode(texture(options.width, options.width * 3 // 4), "JPEG"), True
    print("| beside | answers | median s | longest s | health, longest s | metrics, longest s | peak MB |")
    print("|---|---|--:|--:|--:|--:|--:|")
    try:
        for name, abuse in kinds().items():
            Path(f"/proc/{server.pid}/clear_refs").write_text("5")
            stop = threading.Event()
            abuser = threading.Thread(target=abuse, args=(port, stop), daemon=True)
            abuser.start()
            time.sleep(2)
            clients = [
                Client(port, stop, "POST", "/classify", photo, 0.05),
                Client(port, stop, "GET", "/v2/health/live", None, 0.1),
                Client(port, stop, "GET", "/metrics", None, 0.1),
            ]
            time.sleep(options.seconds)
            stop.set()
            for client in clients:
                client.thread.join(70)
            abuser.join(70)
            photos, health, metrics = clients
            statuses = ", ".join(f"{count} x {status}" for status, count in sorted(photos.statuses.items(), key=str))
            print(
                f"| {name} | {statuses} | {statistics.median(photos.waits):.3f} | {max(photos.waits):.3f} "
                f"| {max(health.waits):.3f} | {max(metrics.waits):.3f} | {peak(server.pid):.0f} |",
                flush=True,
            )
            passed = passed and all(set(client.statuses) == {200} for client in clients)
            for client in clients[1:]:
                if set(client.statuses) != {200}:
                    print(f"  {client.arguments[3]}: {dict(client.statuses)}")
    finally:
        server.terminate()
        server.wait(60)
    return int(not passed)


if __name__ == "__main__":
    sys.exit(main())
