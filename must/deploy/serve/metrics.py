"""The server's metrics for Prometheus. Labels have few, fixed values: nothing that a client sends becomes a label."""

import time

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
BATCH_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128)
CONFIDENCE_BUCKETS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1)


class Metrics:
    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.rendered_at, self.rendered = -1.0, b""
        self.requests = Counter("must_requests", "requests answered", ["protocol", "status"], registry=registry)
        self.request_seconds = Histogram(
            "must_request_seconds", "from a request's last byte to its answer", ["protocol"], buckets=SECONDS_BUCKETS,
            registry=registry,
        )  # fmt: skip
        self.images = Counter("must_images", "images classified", registry=registry)
        self.abstained = Counter("must_abstained", "images for which no class was named", registry=registry)
        self.confidence = Histogram(
            "must_confidence", "top probability of an image", buckets=CONFIDENCE_BUCKETS, registry=registry
        )
        self.batch = Histogram(
            "must_batch_images", "images of a forward pass", buckets=BATCH_BUCKETS, registry=registry
        )
        self.forward = Histogram("must_forward_seconds", "a forward pass", buckets=SECONDS_BUCKETS, registry=registry)
        self.waiting = Gauge(
            "must_images_waiting", "images that were let in and are not answered yet", registry=registry
        )
        self.megapixels = Gauge(
            "must_megapixels_waiting", "of these images, by what decoding them costs", registry=registry
        )
        self.body_bytes = Gauge("must_body_bytes", "bytes of requests that are held now", registry=registry)
        self.model = Gauge("must_model_info", "1 for the version that is served", ["version"], registry=registry)
        self.swaps = Counter("must_model_swaps", "new versions loaded while serving", registry=registry)
        self.swap_failures = Counter("must_model_swap_failures", "versions that could not be loaded", registry=registry)

    def observe_pass(self, images: int, seconds: float) -> None:
        self.batch.observe(images)
        self.forward.observe(seconds)

    def text(self) -> bytes:
        """Cached for a second, as rendering takes a millisecond of the event loop."""
        now = time.monotonic()
        if now - self.rendered_at >= 1:
            self.rendered_at, self.rendered = now, generate_latest(self.registry)
        return self.rendered
