"""From a request to its predictions: admission, decoding of the images, waiting for their forward passes."""

import asyncio
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import chain, count
from queue import PriorityQueue
from typing import Any

import numpy as np

from must.base.processes import cores
from must.config.predict import QUEUE, ServeConfig
from must.deploy.predict.session import threshold
from must.deploy.predict.writer import Options, rank_classes
from must.deploy.serve.metrics import Metrics
from must.deploy.serve.models import Models, ServedModel, fail
from must.deploy.serve.protocol import (
    COST_OF_PIXELS,
    Cost,
    InferRequest,
    Predictions,
    Refused,
    estimate_cost,
    expect,
)

logger = logging.getLogger(__name__)

SMALL = 1 << 18  # bytes of files up to which their headers are read in the event loop; above it in a thread
PATIENCE = 30.0  # seconds that a client may take to send a request, and an answer may take
DELAY = 0.5  # seconds by which each megapixel puts a picture back in the queue: small ones pass large ones
FULL = "the queue of waiting images is full; try again later"


@dataclass(eq=False)
class PendingRequest:
    """The images of one request that wait for their predictions."""

    megapixels: float
    futures: list[asyncio.Future[Any]]


class Decoders:
    """Threads that decode. `memory`: bytes for all pictures that are decoded at a time; a single one may take more."""

    def __init__(self, threads: int, memory: int) -> None:
        self.memory, self.used = memory, 0
        self.queue: PriorityQueue[tuple[float, int, int, Callable[[], None]]] = PriorityQueue()
        self.numbers, self.used_changed = count(), threading.Condition()
        for number in range(threads):
            threading.Thread(target=self.work, name=f"decode-{number}", daemon=True).start()

    def put(self, memory: int, job: Callable[[], None], delay: float = 0) -> None:
        """Thread-safe. `job` is called once, in one of the threads; its place in the queue is as if it had arrived
        `delay` seconds later."""
        self.queue.put((time.monotonic() + delay, next(self.numbers), memory, job))

    def work(self) -> None:
        while True:
            *_, memory, job = self.queue.get()
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


class Work:
    """Processes a request that has been read. Runs in the event loop; decodes in threads."""

    def __init__(self, config: ServeConfig, models: Models, metrics: Metrics) -> None:
        self.config, self.models, self.metrics = config, models, metrics
        self.loop = asyncio.get_running_loop()
        self.decoders = Decoders(config.decoders or cores(), int(config.decoding_bytes))
        self.requests: list[PendingRequest] = []  # that were admitted and have no predictions yet
        self.held_bytes = 0  # of the bodies of requests
        self.draining = False  # once it is true, only a new pod will be ready

    @property
    def waiting(self) -> int:
        """Images."""
        return sum(len(request.futures) for request in self.requests)

    @property
    def megapixels(self) -> float:
        return sum(request.megapixels for request in self.requests)

    async def predict(self, request: InferRequest, served: ServedModel) -> Predictions:
        costs = await self.estimate(request.images, served.max_pixels)
        megapixels, limit = sum(size for size, _ in costs), self.config.request_pixels
        cost = f"the pictures cost as much as {megapixels:.0f} megapixels"
        expect(megapixels <= limit, f"{cost}; this server takes {limit:g} a request", 413)
        pending = PendingRequest(megapixels, [self.loop.create_future() for _ in costs])
        self.admit(pending)
        try:
            delay = 0.0
            for image, (size, memory), future in zip(request.images, costs, pending.futures, strict=True):
                delay += DELAY * size
                self.decoders.put(memory, partial(self.prepare, image, future, served), delay)
            async with asyncio.timeout(PATIENCE):
                rows = np.stack([await future for future in pending.futures])
        except TimeoutError:
            raise Refused(504, f"no answer within {PATIENCE:g} seconds") from None
        finally:
            self.requests = [other for other in self.requests if other is not pending]
            for future in pending.futures:
                future.cancel()
        probability = rows[:, :-1]
        finite = bool(np.isfinite(probability).all())
        expect(finite, "the model's output is not finite; remove NaN and infinity from the input", 422)
        unsure = served.threshold
        if request.abstain is not None:
            unsure = threshold(request.abstain, served.classifier, served.version)
        options = Options(request.top_k or self.config.top_k, unsure)
        classes = served.classifier.classes
        ranked = [rank_classes("", row[:-1], float(row[-1]), classes, options) for row in rows]
        self.metrics.observe_predictions(ranked)
        return Predictions(ranked, probability, unsure)

    async def estimate(self, images: list[bytes] | np.ndarray, max_pixels: int) -> list[Cost]:
        """The cost of each image, from its header."""
        if isinstance(images, np.ndarray):
            return [COST_OF_PIXELS] * len(images)
        if sum(map(len, images)) <= SMALL:
            return [estimate_cost(image, max_pixels) for image in images]
        return await asyncio.to_thread(lambda: [estimate_cost(image, max_pixels) for image in images])

    def admit(self, request: PendingRequest) -> None:
        """Adds a request to the waiting ones; where there is no room, refuses costlier ones that already wait, or this
        one if that would not make enough room."""
        waiting, megapixels = self.waiting + len(request.futures), self.megapixels + request.megapixels
        others, refused = sorted(self.requests, key=lambda other: -other.megapixels), list[PendingRequest]()
        while waiting > QUEUE or megapixels > self.config.queue_pixels:
            costly = others.pop(0) if others else request
            if costly.megapixels <= request.megapixels:
                raise Refused(503, FULL)
            refused.append(costly)
            waiting -= len(costly.futures)
            megapixels -= costly.megapixels
        self.requests = [*(other for other in self.requests if other not in refused), request]
        for future in chain.from_iterable(other.futures for other in refused):
            fail(future, Refused(503, FULL))

    def prepare(self, image: bytes | np.ndarray, future: asyncio.Future[Any], served: ServedModel) -> None:
        """Runs in a decoder's thread: one image into the model's queue, or its error into `future`."""
        if future.done():
            return
        try:
            served.queue.put((served.row(image), future))
        except Exception as error:
            self.loop.call_soon_threadsafe(fail, future, error)
