"""From a request to its answer: letting it in, decoding its images, waiting for their forward passes."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from must.base.cores import cores
from must.config.serve import ServeConfig
from must.deploy.serve.answers import Answer
from must.deploy.serve.asked import Asked, Limits
from must.deploy.serve.metrics import Metrics
from must.deploy.serve.models import Models, Served
from must.deploy.serve.refused import Refused, wanted


class Work:
    """What is done with a request once it is read. Lives in the event loop; decodes in threads."""

    def __init__(self, config: ServeConfig, models: Models, metrics: Metrics) -> None:
        self.config, self.models, self.metrics = config, models, metrics
        self.loop = asyncio.get_running_loop()
        self.decoders = ThreadPoolExecutor(config.decoders or cores(), thread_name_prefix="decode")
        self.waiting = 0  # images that were let in and are not answered yet
        self.held_bytes = 0  # of requests
        self.draining = False
        self.max_body = int(config.max_body * 1e6)

    @property
    def ready(self) -> bool:
        return self.models.current is not None and not self.draining

    def limits(self, served: Served) -> Limits:
        classifier = served.classifier
        return Limits(self.config.max_images, classifier.preprocess.size, not classifier.takes_pixels)

    def hold(self, size: int) -> None:
        """Counts bytes that a request takes. Raises Refused: all of them together take too many."""
        if self.held_bytes + size > self.config.max_memory * 1e6:
            raise Refused(503, "the server holds as many requests as its memory allows; try again")
        self.held_bytes += size

    def let_go(self, size: int) -> None:
        self.held_bytes -= size

    async def answer(self, asked: Asked, served: Served) -> Answer:
        """Raises Refused: too many images are waiting, one cannot be read, it took too long, or the model gives no
        embeddings."""
        wanted(
            served.classifier.dimensions > 0 or not asked.wants_embedding,
            "this model gives no embeddings; export it again with `must export --embeddings`",
        )
        images = len(asked.images)
        if self.waiting + images > self.config.queue:
            raise Refused(503, "the server has as many images waiting as it takes; try again")
        self.waiting += images
        futures = [self.loop.create_future() for _ in range(images)]
        try:
            for image, future in zip(asked.images, futures, strict=True):
                self.decoders.submit(self.prepare, image, future, served)
            async with asyncio.timeout(self.config.patience):
                found = [await future for future in futures]
        except TimeoutError:
            raise Refused(504, f"no answer within {self.config.patience:g} seconds") from None
        finally:
            self.waiting -= images
            for future in futures:
                future.cancel()
        return self.told(found, asked, served)

    def prepare(self, image: bytes | np.ndarray, future: asyncio.Future[Any], served: Served) -> None:
        """In a decoder's thread: one image to the model's queue, or its error to the request."""
        if future.cancelled():
            return
        try:
            row = served.row(image)
        except Exception as error:
            self.loop.call_soon_threadsafe(fail, future, error)
            return
        assert served.batcher
        served.batcher.put(row, future)

    def told(self, found: list[tuple[np.ndarray, np.ndarray | None]], asked: Asked, served: Served) -> Answer:
        probability = np.stack([row for row, _ in found])
        if not np.isfinite(probability).all():
            raise Refused(422, "the model's answer to this input is no numbers; does it hold infinities?")
        embedding = np.stack([row for _, row in found if row is not None]) if asked.wants_embedding else None
        answer = Answer(
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
        self.decoders.shutdown(wait=False, cancel_futures=True)


def fail(future: asyncio.Future[Any], error: Exception) -> None:
    if not future.done():
        future.set_exception(error)
