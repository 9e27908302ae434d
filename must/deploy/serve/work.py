"""From a request to its predictions: admission, decoding of the images, waiting for their forward passes."""

import asyncio
import logging
import threading
import time
from collections.abc import Callable
from functools import partial
from itertools import count
from queue import PriorityQueue
from typing import Any

import numpy as np

from must.base.processes import cores
from must.config.serve import ServeConfig
from must.data.image.cost import Cost
from must.deploy.serve.metrics import Metrics
from must.deploy.serve.models import Models, ServedModel
from must.deploy.serve.predictions import Predictions
from must.deploy.serve.protocol import InferRequest, Limits, Refused, cost_of, expect

logger = logging.getLogger(__name__)

PIXELS = Cost("pixels", 0, 0, 0, 0.05 * 50e-3)  # an image that comes as pixels counts as 0.05 megapixels
SMALL = 1 << 18  # bytes of files up to which their headers are read in the event loop; above it in a thread
COST_WEIGHT = 10  # a higher weight delays costly pictures more

FULL = "the queue of waiting images is full; try again later"


class PendingRequest:
    """The images of one request that wait for their predictions."""

    def __init__(self, megapixels: float, futures: list[asyncio.Future[Any]]) -> None:
        self.megapixels, self.futures = megapixels, futures


class Decoders:
    """Threads that decode. `memory`: bytes for all pictures that are decoded at a time; a single one may take more."""

    def __init__(self, threads: int, memory: int) -> None:
        self.memory, self.used, self.threads = memory, 0, threads
        self.queue: PriorityQueue[tuple[float, int, int, Callable[[], None] | None]] = PriorityQueue()
        self.numbers, self.used_changed = count(), threading.Condition()
        for number in range(threads):
            threading.Thread(target=self.work, name=f"decode-{number}", daemon=True).start()

    def put(self, memory: int, job: Callable[[], None] | None, seconds: float = 0) -> None:
        """Thread-safe. `job` is called once, in one of the threads. Its place in the queue is as if it had arrived
        COST_WEIGHT * `seconds` later; `seconds`: the cost of it and of the pictures before it in its request."""
        self.queue.put((time.monotonic() + COST_WEIGHT * seconds, next(self.numbers), memory, job))

    def work(self) -> None:
        while True:
            *_, memory, job = self.queue.get()
            if job is None:
                return
            with self.used_changed:
                while self.used and self.used + memory > self.memory:
                    self.used_changed.wait()
                self.used += memory
            try:
                job()
            except Exception:  # a bug; it is logged, and the other pictures continue
                logger.exception("must serve: a picture failed")
            finally:
                with self.used_changed:
                    self.used -= memory
                    self.used_changed.notify_all()

    def close(self) -> None:
        for _ in range(self.threads):
            self.put(0, None, -1e9)


class Work:
    """Processes a request that has been read. Runs in the event loop; decodes in threads."""

    def __init__(self, config: ServeConfig, models: Models, metrics: Metrics) -> None:
        self.config, self.models, self.metrics = config, models, metrics
        self.loop = asyncio.get_running_loop()
        self.decoders = Decoders(config.decoders or cores(), int(config.decode_memory * 1e6))
        self.waiting = 0  # images that were admitted and have no predictions yet
        self.megapixels = 0.0  # of these
        self.requests: dict[PendingRequest, None] = {}
        self.held_bytes = 0  # of the bodies of requests
        self.draining = False  # once it is true, only a new pod will be ready
        self.max_body = int(config.max_body * 1e6)

    @property
    def ready(self) -> bool:
        return self.models.current is not None and not self.draining

    def limits(self, served: ServedModel) -> Limits:
        classifier = served.classifier
        return Limits(self.config.max_images, classifier.preprocess.size, not classifier.takes_pixels)

    def reserve(self, size: int) -> None:
        """Counts bytes of a request's body. Raises Refused: all requests together take too many."""
        if self.held_bytes + size > self.config.max_memory * 1e6:
            raise Refused(503, "the memory for request bodies is full; try again later")
        self.held_bytes += size

    def release(self, size: int) -> None:
        self.held_bytes -= size

    async def predict(self, request: InferRequest, served: ServedModel) -> Predictions:
        """Raises Refused: too many images are waiting or they cost too much, one cannot be read, it took too long, or
        the model gives no embeddings."""
        expect(
            served.classifier.dimensions > 0 or not request.wants_embedding,
            "this model gives no embeddings; export it again with `must export --embeddings`",
        )
        costs = await self.costs_of(request.images, served)
        megapixels = sum(cost.megapixels for cost in costs)
        expect(
            megapixels <= self.config.request_pixels,
            f"the pictures cost as much as {megapixels:.0f} megapixels; this server takes "
            f"{self.config.request_pixels:g} a request",
            413,
        )
        futures = [self.loop.create_future() for _ in costs]
        pending = PendingRequest(megapixels, futures)
        self.admit(pending)
        try:
            seconds = 0.0
            for image, cost, future in zip(request.images, costs, futures, strict=True):
                seconds += cost.seconds
                self.decoders.put(cost.memory, partial(self.prepare, image, future, served), seconds)
            async with asyncio.timeout(self.config.patience):
                rows = [await future for future in futures]
        except TimeoutError:
            raise Refused(504, f"no answer within {self.config.patience:g} seconds") from None
        finally:
            self.remove(pending)
            for future in futures:
                future.cancel()
        return self.predictions_of(rows, request, served)

    def admit(self, request: PendingRequest) -> None:
        """Adds a request to the waiting ones; where there is no room, refuses costlier ones that already wait.
        Raises Refused: there is no room, and no waiting request is costlier."""
        while self.is_full(request):
            costliest = max(self.requests, key=lambda waiting: waiting.megapixels, default=request)
            if costliest.megapixels <= request.megapixels:
                raise Refused(503, FULL)
            self.remove(costliest)
            awaited = next((future for future in costliest.futures if not future.done()), None)
            if awaited is not None:
                awaited.set_exception(Refused(503, FULL))
        self.requests[request] = None
        self.waiting += len(request.futures)
        self.megapixels += request.megapixels

    def is_full(self, request: PendingRequest) -> bool:
        return (
            self.waiting + len(request.futures) > self.config.queue
            or self.megapixels + request.megapixels > self.config.queue_pixels
        )

    def remove(self, request: PendingRequest) -> None:
        if request in self.requests:
            del self.requests[request]
            self.waiting -= len(request.futures)
            self.megapixels -= request.megapixels

    async def costs_of(self, images: list[bytes] | np.ndarray, served: ServedModel) -> list[Cost]:
        """The decoding cost of each image, from its header. Raises Refused: one is not a picture, or costs too much."""
        if isinstance(images, np.ndarray):
            return [PIXELS] * len(images)
        if sum(map(len, images)) <= SMALL:
            return costs_of_files(images, served.max_pixels)
        return await asyncio.to_thread(costs_of_files, images, served.max_pixels)

    def prepare(self, image: bytes | np.ndarray, future: asyncio.Future[Any], served: ServedModel) -> None:
        """Runs in a decoder's thread: one image into the model's queue, or its error into `future`."""
        if future.cancelled():
            return
        try:
            row = served.row(image)
            served.put(row, future)
        except Exception as error:
            self.loop.call_soon_threadsafe(fail, future, error)

    def predictions_of(
        self, rows: list[tuple[np.ndarray, np.ndarray | None]], request: InferRequest, served: ServedModel
    ) -> Predictions:
        probability = np.stack([row for row, _ in rows])
        if not np.isfinite(probability).all():
            raise Refused(422, "the model's output is not finite; remove NaN and infinity from the input")
        embedding = np.stack([row for _, row in rows if row is not None]) if request.wants_embedding else None
        predictions = Predictions(
            served.classifier.classes,
            probability,
            embedding,
            served.threshold if request.abstain is None else request.abstain,
            min(request.top_k or self.config.top_k, probability.shape[1]),
        )
        self.metrics.images.inc(len(rows))
        self.metrics.abstained.inc(int(predictions.abstained.sum()))
        for value in probability.max(axis=1):
            self.metrics.confidence.observe(value)
        return predictions


def costs_of_files(images: list[bytes], max_pixels: int) -> list[Cost]:
    """Raises Refused: as `cost_of`."""
    return [cost_of(image, max_pixels) for image in images]


def fail(future: asyncio.Future[Any], error: Exception) -> None:
    if not future.done():
        future.set_exception(error)
