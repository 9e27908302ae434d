"""The model that is served, and how the registry's next champion takes its place without a lost request.

A request keeps to the model that it began with. The next one is downloaded, compared with the checksums that its
version was promoted with, loaded and tried in a thread; then one assignment in the event loop makes it the one that new
requests get. The old one ends with its last request. A version that cannot be loaded changes nothing.
"""

import asyncio
import logging
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

import numpy as np

from must.base import storage
from must.base.errors import UserError
from must.base.files import ONNX_FILE, VERSION_FILE
from must.base.parameters import require
from must.base.text import printable
from must.config.serve import ServeConfig
from must.data.image.preprocess import EvalView, normalize_pixels
from must.deploy.predict.session import STORED, OnnxClassifier, model_uri, stored_threshold
from must.deploy.promote.registry import Registry
from must.deploy.serve.metrics import Metrics
from must.deploy.serve.pictures import pixels_of
from must.deploy.serve.protocol import Refused

Row = tuple[np.ndarray, "asyncio.Future[Any]"]


class Batcher:
    """A thread that takes single images from a queue and runs them through a model, at most `most` at a time.

    Nobody waits for company unless `delay` (seconds) says so: an image that comes while nothing runs is run at once.

    Args:
        run: images as the model takes them, [N, ...], to a sequence of N results.
        loop: of the futures that get the results.
        ran: told of every pass: images, seconds.
    """

    def __init__(
        self,
        run: Callable[[np.ndarray], Any],
        loop: asyncio.AbstractEventLoop,
        most: int,
        delay: float = 0,
        ran: Callable[[int, float], None] = lambda images, seconds: None,
    ) -> None:
        self.run, self.loop, self.most, self.delay, self.ran = run, loop, most, delay, ran
        self.queue: SimpleQueue[Row | None] = SimpleQueue()
        self.thread = threading.Thread(target=self.work, name="forward", daemon=True)
        self.thread.start()

    def put(self, row: np.ndarray, future: asyncio.Future[Any]) -> None:
        """From any thread: `future` will get the result for `row`, or the error of its pass."""
        self.queue.put((row, future))

    def close(self) -> None:
        """Ends the thread after what is in the queue."""
        self.queue.put(None)

    def work(self) -> None:
        while (first := self.queue.get()) is not None:
            rows, last = self.gather(first)
            rows = [row for row in rows if not row[1].cancelled()]  # nobody waits for those any more
            if rows:
                self.forward(rows)
            if last:
                return

    def gather(self, first: Row) -> tuple[list[Row], bool]:
        """(what goes into one pass, whether the queue ended)."""
        rows = [first]
        until = time.monotonic() + self.delay if self.delay else 0.0
        while len(rows) < self.most:
            left = until - time.monotonic() if self.delay else 0.0
            try:
                row = self.queue.get(timeout=left) if left > 0 else self.queue.get_nowait()
            except Empty:
                break
            if row is None:
                return rows, True
            rows.append(row)
        return rows, False

    def forward(self, rows: list[Row]) -> None:
        begun = time.perf_counter()
        results: Any
        try:
            results = self.run(np.stack([row for row, _ in rows]))
        except Exception as error:  # the pass's images fail, the thread does not
            results = error
        self.ran(len(rows), time.perf_counter() - begun)
        self.loop.call_soon_threadsafe(deliver, [future for _, future in rows], results)


def deliver(futures: list[asyncio.Future[Any]], results: Any) -> None:
    """In the event loop: each future gets its result, or all of them the error."""
    for number, future in enumerate(futures):
        if future.done():
            continue
        if isinstance(results, Exception):
            future.set_exception(results)
        else:
            future.set_result(results[number])


logger = logging.getLogger(__name__)

ONNX = f"onnx/{ONNX_FILE}"  # below a version of the registry
REMINDER = 60.0  # seconds between two lines that say the same of a registry


class Served:
    """A model with the thread that runs it, and how many requests hold it."""

    def __init__(self, version: str, classifier: OnnxClassifier, config: ServeConfig, where: str) -> None:
        self.version, self.classifier = version, classifier
        self.view = EvalView(classifier.preprocess)
        self.max_pixels = int(config.max_pixels * 1e6)
        stored = stored_threshold(classifier.metadata, where) or 0.0
        self.threshold = stored if config.abstain == STORED else config.abstain
        self.users, self.retired = 0, False
        self.batcher: Batcher | None = None

    def row(self, image: bytes | np.ndarray) -> np.ndarray:
        """One image as the graph takes it. Raises Refused: a file that cannot be read."""
        if not isinstance(image, np.ndarray):
            image = pixels_of(image, self.view, self.max_pixels)
        if image.dtype == np.uint8 and not self.classifier.takes_pixels:
            return normalize_pixels(image[None], self.classifier.preprocess)[0]
        return image

    def run(self, rows: np.ndarray) -> list[tuple[np.ndarray, np.ndarray | None]]:
        """For each image its probabilities [K] and, if the graph gives it, its embedding [D].

        It is taken whether or not somebody asked: it lies on the way, a pass has images of several requests, and its
        copy is a few kilobytes an image.
        """
        probability, embedding = self.classifier.run(rows, self.classifier.dimensions > 0)
        return [(row, None if embedding is None else embedding[number]) for number, row in enumerate(probability)]

    def try_out(self, most: int) -> None:
        """One pass of one image and one of many: memory is there, and the answers are probabilities.
        Raises ValueError: they are not."""
        size = self.classifier.preprocess.size
        blank = self.row(np.full((size, size, 3), 127, np.uint8))
        for images in (1, most):
            try:
                found = self.run(np.stack([blank] * images))
            except Exception as error:  # onnxruntime's own exception classes are private
                raise UserError(f"{self.version}: a forward pass fails: {' '.join(str(error).split())[:200]}") from None
            total = sum(float(row.sum()) for row, _ in found) / images
            require(abs(total - 1) < 1e-2, f"{self.version}: its probabilities add up to {total:.3f}")

    def close_if_unused(self) -> None:
        if self.retired and not self.users and self.batcher:
            self.batcher.close()


class OneModel:
    """A folder with model.onnx that stays as it is. As of a Champion, `newest` is the version to serve, '' if there is
    none yet, and `load` gives that version's model, complete and verified."""

    def __init__(self, config: ServeConfig) -> None:
        """Raises ValueError: --model names no file."""
        self.uri, self.threads = model_uri(config.model), config.threads
        with storage.local_copy(self.uri) as path:
            self.version = storage.sha256_of(path)[:12]

    def newest(self) -> str:
        return self.version

    def load(self, version: str) -> OnnxClassifier:
        with storage.local_copy(self.uri) as path:
            return OnnxClassifier(path, self.uri, self.threads, patient=True)


class Champion:
    """The version of a registry that LATEST names."""

    def __init__(self, config: ServeConfig) -> None:
        self.registry, self.threads = Registry(config.registry, config.name), config.threads

    def newest(self) -> str:
        return self.registry.latest().version

    def load(self, version: str) -> OnnxClassifier:
        """Raises ValueError: the version has no ONNX file, or one with other bytes than were promoted."""
        uri = self.registry.uri_of(version, ONNX)
        described = storage.read_json(self.registry.uri_of(version, VERSION_FILE), "--registry")
        files = described.get("files")
        fact = files.get(ONNX) if isinstance(files, dict) else None
        require(isinstance(fact, dict), f"{version} was promoted without its ONNX file (`must promote --onnx`)")
        assert isinstance(fact, dict)
        # Without a name: a server that is killed while it loads leaves nothing in a pod's /tmp, which outlives it.
        with storage.disk_errors(tempfile.gettempdir()), tempfile.TemporaryFile() as file:
            written = storage.HashingFile(file)
            storage.copy(uri, written)
            file.flush()
            found = {"bytes": written.size, "sha256": written.sha256}
            expected = {name: fact.get(name) for name in found}
            require(found == expected, f"{uri}: is not the file that was promoted: its checksum differs")
            return OnnxClassifier(Path(f"/proc/self/fd/{file.fileno()}"), uri, self.threads, patient=True)


class Models:
    """The current model, kept current. All but `load` happens in the event loop."""

    def __init__(self, source: OneModel | Champion, config: ServeConfig, metrics: Metrics) -> None:
        self.source, self.config, self.metrics = source, config, metrics
        self.current: Served | None = None
        self.said: tuple[str, float] = ("", 0.0)

    @contextmanager
    def held(self) -> Iterator[Served]:
        """The current model, which works until the block ends. Raises Refused: there is none yet."""
        served = self.current
        if served is None:
            raise Refused(503, "no model is loaded yet")
        served.users += 1
        try:
            yield served
        finally:
            served.users -= 1
            served.close_if_unused()

    async def refresh(self) -> bool:
        """Loads the newest version if it is another one; whether it did. Raises ValueError, OSError."""
        old = self.current
        served = await asyncio.to_thread(self.load, old.version if old else "")
        if served is None:
            return False
        loop = asyncio.get_running_loop()
        served.batcher = Batcher(served.run, loop, self.config.batch_size, self.config.delay / 1000, self.metrics.ran)
        self.current = served
        self.metrics.model.clear()
        self.metrics.model.labels(served.version).set(1)
        if old:
            self.metrics.swaps.inc()
            old.retired = True
            old.close_if_unused()
        self.say(f"serving {served.version}" + (f" in place of {old.version}" if old else ""))
        return True

    def load(self, version: str) -> Served | None:
        """In a thread: the newest version, tried out; None if it is `version`, or there is none."""
        newest = self.source.newest()
        if not newest or newest == version:
            return None
        served = Served(newest, self.source.load(newest), self.config, newest)
        served.try_out(self.config.batch_size)
        return served

    async def follow(self, seconds: float) -> None:
        """Looks for a newer version for ever. What goes wrong is told, and tried again."""
        while True:
            await self.attempt()
            await asyncio.sleep(seconds)

    async def attempt(self) -> None:
        try:
            if not await self.refresh() and self.current is None:
                self.say("there is no champion yet; waiting for the first promotion", again=True)
        except Exception as error:  # a bucket that is away, a damaged version: the model that is there goes on
            self.metrics.swap_failures.inc()
            kept = f"; serving {self.current.version}" if self.current else ""
            self.say(f"cannot load the newest version: {' '.join(str(error).split())}{kept}", again=True)

    def say(self, line: str, again: bool = False) -> None:
        """A line for the log; the same one that comes `again` not more than once a minute."""
        now = asyncio.get_running_loop().time()
        if again and line == self.said[0] and now - self.said[1] < REMINDER:
            return
        self.said = (line, now)
        logger.warning(f"must serve: {printable(line, 2000)}")
