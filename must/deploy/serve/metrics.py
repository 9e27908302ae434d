"""The server's metrics for Prometheus. Labels have few, fixed values: nothing that a client sends becomes a label."""

from functools import partial

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from must.deploy.predict.writer import Prediction

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
IMAGE_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128)
SHARES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1)  # of numbers from 0 to 1


class ServerMetrics:
    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        counter, gauge = partial(Counter, registry=self.registry), partial(Gauge, registry=self.registry)
        histogram = partial(Histogram, registry=self.registry)
        # requests
        self.requests = counter("must_requests", "requests answered", ["protocol", "status"])
        self.request_seconds = histogram(
            "must_request_seconds", "from a request's last byte to its answer", ["protocol"], buckets=SECONDS
        )
        self.waiting = gauge("must_images_waiting", "images that were let in and are not answered yet")
        self.megapixels = gauge("must_megapixels_waiting", "of these images, by what decoding them costs")
        self.body_bytes = gauge("must_body_bytes", "bytes of requests that are held now")
        # images: one observation of each
        self.images = counter("must_images", "images classified")
        self.abstained = counter("must_abstained", "images for which no class was named")
        self.confidence = histogram("must_confidence", "top probability of an image", buckets=SHARES)
        self.similarity = histogram(
            "must_similarity", "of an image to those that the model remembers; lower values show drift", buckets=SHARES
        )
        # forward passes, and the model
        self.batch = histogram("must_batch_images", "images of a forward pass", buckets=IMAGE_BUCKETS)
        self.forward = histogram("must_forward_seconds", "a forward pass", buckets=SECONDS)
        self.model = gauge("must_model_info", "1 for the version that is served", ["version"])
        self.swaps = counter("must_model_swaps", "new versions loaded while serving")
        self.swap_failures = counter("must_model_swap_failures", "failed tries to find or load the newest version")

    def observe_predictions(self, predictions: list[Prediction]) -> None:
        self.images.inc(len(predictions))
        self.abstained.inc(sum(one.abstained for one in predictions))
        for one in predictions:
            self.confidence.observe(one.probability)
            if one.similarity is not None:
                self.similarity.observe(one.similarity)

    def observe_pass(self, images: int, seconds: float) -> None:
        self.batch.observe(images)
        self.forward.observe(seconds)

    def text(self) -> bytes:
        return generate_latest(self.registry)
