"""Classifies JPEGs with `must serve`, onnxruntime alone, and a plain FastAPI server with torch, for comparison.

    python benchmarks/serve_http.py                              a ViT-B/32 with random weights, 256 x 256 JPEGs
    python benchmarks/serve_http.py --bundle model/ --shards shards/

All in one run on one machine. Each server is a process; the clients are one more process, which keeps one connection
per client open and sends the same images repeatedly. It uses cores of the same machine. `onnxruntime` is the model
alone, with its best batch size, on decoded images; `decode + onnxruntime` is a program without a server, with as many
threads.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))
CLIENTS = (1, 8, 64)
PLAIN = """
import io, sys
import torch, uvicorn
from fastapi import FastAPI, Request
from PIL import Image
from must.data.image.preprocess import EvalView, normalize_pixels
from must.model.bundle import load_bundle
from must.model.description import get_preprocess

bundle = load_bundle(sys.argv[1])
preprocess = get_preprocess(bundle.description)
view, app = EvalView(preprocess), FastAPI()


def answer(data):
    pixels = view(Image.open(io.BytesIO(data)).convert("RGB"))
    with torch.inference_mode():
        probability = bundle.model(torch.from_numpy(normalize_pixels(pixels[None], preprocess))).softmax(-1)[0]
    values, numbers = probability.topk(min(5, len(probability)))
    best = zip(values.tolist(), numbers.tolist())
    return [{"class": bundle.description.classes[number], "probability": value} for value, number in best]


@app.post("/classify")
async def classify(request: Request):
    from fastapi.concurrency import run_in_threadpool
    return {"predictions": await run_in_threadpool(answer, await request.body())}


uvicorn.run(app, port=int(sys.argv[2]), log_level="warning")
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", help="a bundle of `must train`")
    parser.add_argument("--architecture", default="ViT-B-32", help="an open_clip model, with random weights")
    parser.add_argument("--shards", default="", help="shards whose pictures are sent, as JPEGs; random ones without")
    parser.add_argument("--seconds", type=float, default=8, help="of each measurement")
    parser.add_argument("--clients", type=int, nargs="+", default=list(CLIENTS))
    parser.add_argument("--load", nargs=2, help=argparse.SUPPRESS)  # the clients' process: PORT, FOLDER of pictures
    options = parser.parse_args()
    if options.load:
        load(int(options.load[0]), Path(options.load[1]), options.clients[0], options.seconds)
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        bundle, models = make_models(options, folder)
        pictures = make_pictures(options, folder / "pictures")
        size = np.mean([len(data) for data in pictures]) / 1e3
        print(f"{options.bundle or options.architecture}, {os.cpu_count()} cores, JPEGs of {size:.1f} kB\n")
        alone = {name: onnxruntime_alone(path, pictures, options.seconds) for name, path in models.items()}
        for name, (model, with_decoding) in alone.items():
            print(f"onnxruntime {name}: {model:.1f} images/s; with decoding: {with_decoding:.1f} images/s")
        print("\n| | clients | p50 ms | p99 ms | images/s | of onnxruntime | of decode + onnxruntime | x plain |")
        print("|---|--:|--:|--:|--:|--:|--:|--:|", flush=True)
        plain: dict[int, float] = {}
        commands = {"FastAPI + torch": [sys.executable, "-c", PLAIN, bundle, "PORT"]}
        for name, path in models.items():
            serve = ["serve", "--model", str(path), "--port", "PORT", "--drain", "0"]
            commands[f"must serve {name}"] = [sys.executable, "-m", "must", *serve]
        for name, command in commands.items():
            for clients in options.clients:
                speed = measure(command, folder / "pictures", clients, options)
                plain.setdefault(clients, speed["rate"])
                print(row(name, clients, speed, alone, plain[clients]), flush=True)


def row(name, clients, speed, alone, plain) -> str:
    references = alone.get(name.removeprefix("must serve "), (None, None))
    shares = [f"{100 * speed['rate'] / value:.0f}%" if value else "" for value in references]
    values = [f"{speed[key]:.1f}" for key in ("p50", "p99", "rate")]
    failed = f" {speed['failed']} failed" if speed["failed"] else ""
    return "| " + " | ".join([name, str(clients), *values, *shares, f"{speed['rate'] / plain:.2f}"]) + " |" + failed


def make_models(options, folder: Path) -> tuple[str, dict[str, Path]]:
    from benchmarks.serve import random_bundle
    from must.config import ExportConfig
    from must.exporting.export import export

    bundle = options.bundle or random_bundle(options.architecture, folder / "bundle")
    models = {}
    for precision in ("fp32", "int8"):
        models[precision] = folder / precision
        output = str(models[precision])
        export(
            ExportConfig(model=bundle, output=output, precision=precision, shards=options.shards, min_agreement=1e-9)
        )
    return bundle, models


def make_pictures(options, folder: Path) -> list[bytes]:
    from PIL import Image

    from must.data.image.decode import decode

    folder.mkdir()
    if options.shards:
        from must.data.reader import ShardReader

        reader = ShardReader(options.shards, "train")
        images = [decode(reader.image(number)) for number in range(min(64, len(reader)))]
    else:
        generator = np.random.default_rng(0)
        coarse = [generator.integers(0, 256, (24, 24, 3), dtype=np.uint8) for _ in range(64)]
        images = [Image.fromarray(pixels).resize((256, 256), Image.Resampling.BICUBIC) for pixels in coarse]
    pictures = []
    for number, image in enumerate(images):
        file = io.BytesIO()
        image.save(file, "JPEG", quality=90)
        pictures.append(file.getvalue())
        (folder / f"{number:03d}.jpg").write_bytes(pictures[-1])
    return pictures


def onnxruntime_alone(path: Path, pictures: list[bytes], seconds: float) -> tuple[float, float]:
    """Images per second of (the model on tensors in memory with its best batch size, decoding and the model)."""
    from must.data.image.decode import decode
    from must.data.image.preprocess import EvalView, normalize_pixels
    from must.prediction.onnx_model import OnnxClassifier

    classifier = OnnxClassifier(path / "model.onnx")
    view = EvalView(classifier.preprocess)
    rates = []
    for batch in (1, 8, 32):
        pixels = np.stack([view(decode(pictures[i % len(pictures)])) for i in range(batch)])
        ready = normalize_pixels(pixels, classifier.preprocess)
        classifier.session.run(None, {classifier.input_name: ready})
        started, images = time.perf_counter(), 0
        while time.perf_counter() - started < seconds / 3:
            classifier.session.run(None, {classifier.input_name: ready})
            images += batch
        rates.append((images / (time.perf_counter() - started), batch))
    batch = max(rates)[1]
    started, images = time.perf_counter(), 0
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        ahead: deque[Any] = deque()

        def prepare(number):
            return normalize_pixels(view(decode(pictures[number % len(pictures)]))[None], classifier.preprocess)[0]

        while time.perf_counter() - started < seconds:
            while len(ahead) < 2:
                ahead.append([pool.submit(prepare, images + i) for i in range(batch)])
            classifier.session.run(
                None, {classifier.input_name: np.stack([future.result() for future in ahead.popleft()])}
            )
            images += batch
        rate = images / (time.perf_counter() - started)
    return max(rates)[0], rate


def measure(command: list[str], pictures: Path, clients: int, options) -> dict:
    """Starts the server, warms it up, and runs the clients' process."""
    from benchmarks.stores import free_port, running

    port = free_port()
    with running([str(port) if word == "PORT" else word for word in command], port):
        load_command = [sys.executable, __file__, "--load", str(port), str(pictures), "--clients", str(clients)]
        subprocess.run([*load_command, "--seconds", "2"], check=True, capture_output=True)
        load_command += ["--seconds", str(options.seconds)]
        return json.loads(subprocess.run(load_command, check=True, capture_output=True, text=True).stdout)


def load(port: int, folder: Path, clients: int, seconds: float) -> None:
    """The clients: each sends the next image after a response. Prints the latencies' percentiles."""
    pictures = [path.read_bytes() for path in sorted(folder.iterdir())]
    requests = [
        b"POST /classify HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % len(data) + data for data in pictures
    ]
    times: list[float] = []
    failed = 0

    async def client(number: int, end: float) -> None:
        nonlocal failed
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        while time.perf_counter() < end:
            started = time.perf_counter()
            writer.write(requests[number % len(requests)])
            head = await reader.readuntil(b"\r\n\r\n")
            length = re.search(rb"content-length: (\d+)", head, re.I)
            assert length, head
            await reader.readexactly(int(length[1]))
            times.append(time.perf_counter() - started)
            failed += b" 200 " not in head[:20]
            number += clients
        writer.close()

    async def all_clients() -> float:
        started = time.perf_counter()
        await asyncio.gather(*(client(number, started + seconds) for number in range(clients)))
        return time.perf_counter() - started

    duration = asyncio.run(all_clients())
    p50, p99 = np.percentile(times, [50, 99]) * 1e3
    print(json.dumps({"p50": p50, "p99": p99, "rate": len(times) / duration, "failed": failed}))


if __name__ == "__main__":
    main()
