"""The served model, and its replacement by the registry's next champion without a lost request.

A request uses one model from its beginning to its end. A thread downloads the next model, verifies its checksums, loads
it and tries it; then one assignment in the event loop makes it the model of new requests. The old model is closed after
its last request. If a version cannot be loaded, the old model is still served."""

import asyncio
import logging
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Self

import numpy as np

from must.base import storage
from must.base.errors import UserError
from must.base.parameters import require
from must.base.processes import DaemonThreads
from must.base.text import make_printable
from must.config.deploy import ServeConfig
from must.config.work import ONNX_FILE, VERSION_FILE, WEIGHTS_FILE
from must.data.image.preprocess import EvalView
from must.prediction.onnx_model import (
    KNOWS_NONE,
    OnnxClassifier,
    choose_threshold,
    find_model_file,
    find_other_bundle,
    read_threshold,
)
from must.registry.promote import LATEST, Registry
from must.serving.metrics import ServerMetrics
from must.serving.protocol import Refused, decode_pixels

Row = tuple[np.ndarray, "asyncio.Future[Any]"]

logger = logging.getLogger(__name__)

DAMAGED_PAUSE = 600.0  # seconds until a version that could not be served is downloaded again
ONNX, WEIGHTS = f"onnx/{ONNX_FILE}", f"bundle/{WEIGHTS_FILE}"  # below a version of the registry


class NoModelError(UserError):
    """No model was promoted yet."""


class DamagedVersionError(UserError):
    """A version's ONNX file cannot be served."""


class KnownDamageError(DamagedVersionError):
    """It was tried before, and not again."""


class ServedModel:
    """A model, the thread that runs it, and the number of requests that use it.

    The thread takes single images from a queue and runs them through the model, at most `batch_size` at a time. An
    image that arrives while no pass runs is run at once, not held back for a larger batch."""

    def __init__(self, version: str, classifier: OnnxClassifier, config: ServeConfig) -> None:
        self.version, self.classifier, self.batch_size = version, classifier, config.batch_size
        self.view = EvalView(classifier.preprocess)
        self.max_pixels = int(config.max_pixels * 1e6)
        self.threshold = choose_threshold(config.abstain, classifier, version)
        self.stored = read_threshold(classifier, version)
        self.users, self.retired = 0, False
        # A future gets float32 [K + 1], the probabilities of its row and the similarity, or the error of the pass.
        self.queue: SimpleQueue[Row | None] = SimpleQueue()

    def start(self, loop: asyncio.AbstractEventLoop, on_pass: Callable[[int, float], None]) -> None:
        """Starts the thread. `loop`: of the futures; `on_pass`: called after every pass with the number of images,
        seconds."""
        self.loop, self.on_pass = loop, on_pass
        threading.Thread(target=self.work, name="forward", daemon=True).start()

    def close_if_unused(self) -> None:
        """Ends the thread when the queue is processed, if the model is retired and no request uses it."""
        if self.retired and not self.users:
            self.queue.put(None)

    def work(self) -> None:
        while (first := self.queue.get()) is not None:
            rows = [first]
            while len(rows) < self.batch_size and not self.queue.empty():
                if (row := self.queue.get()) is None:
                    self.queue.put(None)  # the end comes after this pass
                    break
                rows.append(row)
            if rows := [(row, future) for row, future in rows if not future.cancelled()]:
                self.forward(rows)

    def forward(self, rows: list[Row]) -> None:
        start = time.perf_counter()
        results: Any
        try:
            results = np.column_stack(self.classifier.run(np.stack([row for row, _ in rows]))[:2])
        except Exception as error:  # the images of this pass fail; the thread continues
            results = [error] * len(rows)
        self.on_pass(len(rows), time.perf_counter() - start)
        self.loop.call_soon_threadsafe(deliver, [future for _, future in rows], results)

    def prepare(self, image: bytes | np.ndarray, future: asyncio.Future[Any]) -> None:
        """Thread-safe. Puts an image into the queue, unless nobody waits for it any more."""
        if not future.done():
            self.queue.put((self.row(image), future))

    def row(self, image: bytes | np.ndarray) -> np.ndarray:
        """One image as the graph's input."""
        if not isinstance(image, np.ndarray):
            image = decode_pixels(image, self.view, self.max_pixels)
        return self.classifier.prepare(image[None])[0] if image.dtype == np.uint8 else image

    @classmethod
    def open(cls, version: str, path: Path, uri: str, config: ServeConfig) -> Self:
        """The model of an ONNX file, tested."""
        served = cls(version, OnnxClassifier(path, uri, config.threads, sleeping_threads=True), config)
        served.try_out()
        return served

    def try_out(self) -> None:
        """Runs a pass of one image and a full one, to test the memory and the outputs."""
        size = self.classifier.preprocess.size
        for images in (1, self.batch_size):
            found = self.classifier(np.full((images, size, size, 3), 127, np.uint8)).probability
            total, least = float(found.sum()) / images, 0.0 if KNOWS_NONE in self.classifier.metadata else 0.99
            valid = float(found.min()) >= 0 and least < total < 1.01
            require(valid, f"{self.version}: its probabilities add up to {total:.3f}")


def deliver(futures: list[asyncio.Future[Any]], results: Any) -> None:
    for future, result in zip(futures, results, strict=True):
        if isinstance(result, Exception):
            fail(future, result)
        elif not future.done():
            future.set_result(result)


def fail(future: asyncio.Future[Any], error: Exception) -> None:
    if not future.done():
        future.set_exception(error)
        future.exception()  # asyncio logs those that nobody reads, as those after a request's first one


def load_file(config: ServeConfig) -> ServedModel:
    """The model at --model, verified."""
    uri = find_model_file(config.model)
    with storage.local_copy(uri) as path:
        served = ServedModel.open(storage.compute_sha256(path)[:12], path, uri, config)
    bundle = find_other_bundle(uri, served.classifier)
    require(not bundle, f"{uri}: was exported from another model than {bundle}; run `must export` again")
    return served


def find_champion(registry: Registry, config: ServeConfig) -> str:
    """The version in LATEST. Raises NoModelError: there is none; the message names the registry's other models."""
    root, version = config.registry, registry.latest().version
    if not version:
        marks = [entry.name for entry in storage.list_existing(root) if entry.name.count("/") == 1]
        names = sorted(mark.removesuffix(f"/{LATEST}") for mark in marks if mark.endswith(f"/{LATEST}"))
        others = f"there are {', '.join(names[:20])}" if names else "there are no others"
        raise NoModelError(f"no model --name {config.name} in {root}; {others}; waiting for the first promotion")
    return version


def load_version(registry: Registry, config: ServeConfig, version: str) -> ServedModel:
    """The model of a version, verified. Raises DamagedVersionError: it was downloaded, and cannot be served."""
    uri, stored = registry.make_uri(version, ONNX), registry.checksums(version)
    require(ONNX in stored, f"{version} was promoted without its ONNX file (`must promote --onnx`)")
    # A file without a name: a killed server leaves no file in the pod's /tmp, which outlives the container.
    with storage.disk_errors(tempfile.gettempdir()), tempfile.TemporaryFile() as file:
        written = storage.HashingFile(file)
        storage.copy(uri, written)
        file.seek(0)
        try:
            require(written.sha256 == stored[ONNX], f"{uri}: is not the file that was promoted: its checksum differs")
            served = ServedModel.open(version, Path(f"/dev/fd/{file.fileno()}"), uri, config)
            weights = stored.get(WEIGHTS, "")
            same = not weights or served.classifier.metadata.get("weights_sha256") == weights
            require(same, f"{uri}: was exported from another model than the version's bundle; promote the model again")
        except UserError as error:
            raise DamagedVersionError(str(error)) from None
    return served


class Models:
    """The current model and its replacement. All methods except `load` run in the event loop."""

    def __init__(self, config: ServeConfig, metrics: ServerMetrics) -> None:
        self.config, self.metrics = config, metrics
        self.registry = Registry(config.registry, config.name) if config.registry else None
        self.current: ServedModel | None = None
        self.last_log = ""
        self.failed: tuple[object, float, str] = None, 0.0, ""  # the version that cannot be served: files, time, reason

    @contextmanager
    def borrow(self) -> Iterator[ServedModel]:
        """The current model, which is not closed before the block ends."""
        served = self.current
        if served is None:
            raise Refused(503, "no model is loaded yet")
        served.users += 1
        try:
            yield served
        finally:
            served.users -= 1
            served.close_if_unused()

    async def refresh(self) -> None:
        """Loads the newest version if it is not the current one. Raises ValueError, OSError."""
        old = self.current
        loop = asyncio.get_running_loop()
        served = await loop.run_in_executor(DaemonThreads(), self.load, old.version if old else "")
        if served is None:
            return
        served.start(loop, self.metrics.observe_pass)
        self.current = served
        self.metrics.model.clear()
        self.metrics.model.labels(served.version).set(1)
        if old:
            self.metrics.swaps.inc()
            old.retired = True
            old.close_if_unused()
        self.log(f"serving {served.version}" + (f" in place of {old.version}" if old else ""))

    def load(self, current: str) -> ServedModel | None:
        """Runs in a thread. The newest version, tested; None if that is `current`. A version that cannot be served is
        downloaded again when one of its files changes, or after DAMAGED_PAUSE: memory may have been full; before
        that it raises KnownDamageError."""
        registry = self.registry
        if not registry:
            return load_file(self.config)
        version = find_champion(registry, self.config)
        if version == current:
            return None
        file = version, *(storage.find_generation(registry.make_uri(version, name)) for name in (ONNX, VERSION_FILE))
        known, when, why = self.failed
        if file == known and time.monotonic() < when + DAMAGED_PAUSE:
            raise KnownDamageError(why)
        try:
            return load_version(registry, self.config, version)
        except DamagedVersionError as error:
            self.failed = file, time.monotonic(), str(error)
            raise

    async def follow(self) -> None:
        """Looks for a newer version for ever. Logs errors and tries again."""
        while True:
            try:
                await self.refresh()
            except NoModelError as error:
                self.log(str(error))
            except Exception as error:  # e.g. an unreachable bucket or a damaged version: the current model stays
                self.metrics.swap_failures.inc(not isinstance(error, KnownDamageError))
                current = f"; serving {self.current.version}" if self.current else ""
                self.log(f"cannot load the newest version: {' '.join(str(error).split())}{current}")
            await asyncio.sleep(self.config.poll)

    def log(self, line: str) -> None:
        if line != self.last_log:
            self.last_log = line
            logger.warning(f"must serve: {make_printable(line, 2000)}")
