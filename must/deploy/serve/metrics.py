"""What the server counts, for Prometheus. Labels are few and ours: nothing that a client sends becomes one."""

import time

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
BATCH_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128)
CONFIDENCE_BUCKETS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1)


class Metrics:
    def __init__(self) -> None:
        self.registry = own = CollectorRegistry()
        self.made, self.last = -1.0, b""
        self.requests = Counter("must_requests", "requests answered", ["protocol", "status"], registry=own)
        self.request_seconds = Histogram(
            "must_request_seconds",
            "from a request's last byte to its answer",
            ["protocol"],
            buckets=SECONDS_BUCKETS,
            registry=own,
        )
        self.images = Counter("must_images", "images classified", registry=own)
        self.abstained = Counter("must_abstained", "images for which no class was named", registry=own)
        self.confidence = Histogram(
            "must_confidence", "top probability of an image", buckets=CONFIDENCE_BUCKETS, registry=own
        )
        self.batch = Histogram("must_batch_images", "images of a forward pass", buckets=BATCH_BUCKETS, registry=own)
        self.forward = Histogram("must_forward_seconds", "a forward pass", buckets=SECONDS_BUCKETS, registry=own)
        self.waiting = Gauge("must_images_waiting", "images that were let in and are not answered yet", registry=own)
        self.megapixels = Gauge("must_megapixels_waiting", "of these images, by what decoding them costs", registry=own)
        self.body_bytes = Gauge("must_body_bytes", "bytes of requests that are held now", registry=own)
        self.model = Gauge("must_model_info", "1 for the version that is served", ["version"], registry=own)
        self.swaps = Counter("must_model_swaps", "new versions loaded while serving", registry=own)
        self.swap_failures = Counter("must_model_swap_failures", "versions that could not be loaded", registry=own)

    def ran(self, images: int, seconds: float) -> None:
        self.batch.observe(images)
        self.forward.observe(seconds)

    def text(self) -> bytes:
        """At most a second old: making it takes a millisecond of the event loop."""
        now = time.monotonic()
        if now - self.made >= 1:
            self.made, self.last = now, generate_latest(self.registry)
        return self.last
