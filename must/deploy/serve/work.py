"""From a request to its answer: letting it in, decoding its images, waiting for their forward passes."""

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
from must.data.image.headers.base import Cost
from must.deploy.serve.metrics import Metrics
from must.deploy.serve.models import Models, Served
from must.deploy.serve.pictures import cost_of
from must.deploy.serve.predictions import Predictions
from must.deploy.serve.protocol import InferRequest, Limits, Refused, wanted

logger = logging.getLogger(__name__)

PIXELS = Cost("pixels", 0, 0, 0, 0.05 * 50e-3)  # an image that comes as pixels counts as 0.05 megapixels
SMALL = 1 << 18  # bytes of files whose headers are read at once; those of more in a thread
COST_WEIGHT = 10  # more of it lets cheap pictures pass costly ones for longer

FULL = "the queue of waiting images is full; try again later"


class Request:
    """What one request has waiting."""

    def __init__(self, megapixels: float, futures: list[asyncio.Future[Any]]) -> None:
        self.megapixels, self.futures = megapixels, futures


class Decoders:
    """Threads that decode. `memory`: bytes that pictures may take at a time; one alone is decoded whatever it takes."""

    def __init__(self, threads: int, memory: int) -> None:
        self.memory, self.taken, self.threads = memory, 0, threads
        self.waiting: PriorityQueue[tuple[float, int, int, Callable[[], None] | None]] = PriorityQueue()
        self.numbers, self.changed = count(), threading.Condition()
        for number in range(threads):
            threading.Thread(target=self.work, name=f"decode-{number}", daemon=True).start()

    def put(self, memory: int, job: Callable[[], None] | None, seconds: float = 0) -> None:
        """From any thread. `job` is called once, in a thread of these, in its turn: as if it had come later by
        COST_WEIGHT times `seconds`, which are what it costs, and its request's pictures before it."""
        self.waiting.put((time.monotonic() + COST_WEIGHT * seconds, next(self.numbers), memory, job))

    def work(self) -> None:
        while True:
            *_, memory, job = self.waiting.get()
            if job is None:
                return
            with self.changed:
                self.changed.wait_for(partial(self.has_room, memory))
                self.taken += memory
            try:
                job()
            except Exception:  # ours; the other pictures go on, and the log has it
                logger.exception("must serve: a picture failed")
            finally:
                with self.changed:
                    self.taken -= memory
                    self.changed.notify_all()

    def has_room(self, memory: int) -> bool:
        return not self.taken or self.taken + memory <= self.memory

    def close(self) -> None:
        for _ in range(self.threads):
            self.put(0, None, -1e9)


class Work:
    """What is done with a request once it is read. Lives in the event loop; decodes in threads."""

    def __init__(self, config: ServeConfig, models: Models, metrics: Metrics) -> None:
        self.config, self.models, self.metrics = config, models, metrics
        self.loop = asyncio.get_running_loop()
        self.decoders = Decoders(config.decoders or cores(), int(config.decode_memory * 1e6))
        self.waiting = 0  # images that were let in and are not answered yet
        self.megapixels = 0.0  # of these
        self.requests: dict[Request, None] = {}
        self.held_bytes = 0  # of requests
        self.draining = False
        self.max_body = int(config.max_body * 1e6)

    @property
    def ready(self) -> bool:
        return self.models.current is not None and not self.draining

    def stop(self) -> None:
        """No longer ready, for good: what a new pod is needed for."""
        self.draining = True

    def limits(self, served: Served) -> Limits:
        classifier = served.classifier
        return Limits(self.config.max_images, classifier.preprocess.size, not classifier.takes_pixels)

    def reserve(self, size: int) -> None:
        """Counts bytes that a request takes. Raises Refused: all of them together take too many."""
        if self.held_bytes + size > self.config.max_memory * 1e6:
            raise Refused(503, "the memory for request bodies is full; try again later")
        self.held_bytes += size

    def release(self, size: int) -> None:
        self.held_bytes -= size

    async def answer(self, asked: InferRequest, served: Served) -> Predictions:
        """Raises Refused: too many images are waiting or they cost too much, one cannot be read, it took too long, or
        the model gives no embeddings."""
        wanted(
            served.classifier.dimensions > 0 or not asked.wants_embedding,
            "this model gives no embeddings; export it again with `must export --embeddings`",
        )
        weights = await self.weigh(asked.images, served)
        images, megapixels = len(weights), sum(cost.megapixels for cost in weights)
        wanted(
            megapixels <= self.config.request_pixels,
            f"the pictures cost as much as {megapixels:.0f} megapixels; this server takes "
            f"{self.config.request_pixels:g} a request",
            413,
        )
        futures = [self.loop.create_future() for _ in range(images)]
        request = Request(megapixels, futures)
        self.let_in(request)
        try:
            seconds = 0.0
            for image, cost, future in zip(asked.images, weights, futures, strict=True):
                seconds += cost.seconds
                self.decoders.put(cost.memory, partial(self.prepare, image, future, served), seconds)
            async with asyncio.timeout(self.config.patience):
                found = [await future for future in futures]
        except TimeoutError:
            raise Refused(504, f"no answer within {self.config.patience:g} seconds") from None
        finally:
            self.let_out(request)
            for future in futures:
                future.cancel()
        return self.answer_of(found, asked, served)

    def let_in(self, request: Request) -> None:
        """Counts a request among those that wait; the costliest of them make room for one that costs less.
        Raises Refused: too much is waiting, and nothing costlier than this."""
        while self.is_full(request):
            costliest = max(self.requests, key=lambda one: one.megapixels, default=request)
            if costliest.megapixels <= request.megapixels:
                raise Refused(503, FULL)
            self.let_out(costliest)
            awaited = next((future for future in costliest.futures if not future.done()), None)
            if awaited is not None:
                awaited.set_exception(Refused(503, FULL))
        self.requests[request] = None
        self.waiting += len(request.futures)
        self.megapixels += request.megapixels

    def is_full(self, request: Request) -> bool:
        return (
            self.waiting + len(request.futures) > self.config.queue
            or self.megapixels + request.megapixels > self.config.queue_pixels
        )

    def let_out(self, request: Request) -> None:
        if request in self.requests:
            del self.requests[request]
            self.waiting -= len(request.futures)
            self.megapixels -= request.megapixels

    async def weigh(self, images: list[bytes] | np.ndarray, served: Served) -> list[Cost]:
        """Of each image, by its header. Raises Refused: one is no picture, or costs too much."""
        if isinstance(images, np.ndarray):
            return [PIXELS] * len(images)
        if sum(map(len, images)) <= SMALL:
            return weights_of(images, served.max_pixels)
        return await asyncio.to_thread(weights_of, images, served.max_pixels)

    def prepare(self, image: bytes | np.ndarray, future: asyncio.Future[Any], served: Served) -> None:
        """In a decoder's thread: one image to the model's queue, or its error to the request."""
        if future.cancelled():
            return
        try:
            row = served.row(image)
            assert served.batcher
            served.batcher.put(row, future)
        except Exception as error:
            self.loop.call_soon_threadsafe(fail, future, error)

    def answer_of(
        self, found: list[tuple[np.ndarray, np.ndarray | None]], asked: InferRequest, served: Served
    ) -> Predictions:
        probability = np.stack([row for row, _ in found])
        if not np.isfinite(probability).all():
            raise Refused(422, "the model's output is not finite; remove NaN and infinity from the input")
        embedding = np.stack([row for _, row in found if row is not None]) if asked.wants_embedding else None
        answer = Predictions(
            served.classifier.classes,
            probability,
            embedding,
            served.threshold if asked.abstain is None else asked.abstain,
            min(asked.top_k or self.config.top_k, probability.shape[1]),
        )
        self.metrics.images.inc(len(found))
        self.metrics.abstained.inc(int(answer.abstained.sum()))
        for value in probability.max(axis=1):
            self.metrics.confidence.observe(value)
        return answer

    def close(self) -> None:
        self.decoders.close()


def weights_of(images: list[bytes], max_pixels: int) -> list[Cost]:
    """Raises Refused: as `cost_of`."""
    return [cost_of(image, max_pixels) for image in images]


def fail(future: asyncio.Future[Any], error: Exception) -> None:
    if not future.done():
        future.set_exception(error)
