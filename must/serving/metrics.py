"""The server's metrics for Prometheus. Labels have few, fixed values: nothing that a client sends becomes a label."""

from functools import partial

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
IMAGE_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128)


class ServerMetrics:
    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        counter, gauge = partial(Counter, registry=self.registry), partial(Gauge, registry=self.registry)
        histogram = partial(Histogram, registry=self.registry)
        # requests
        self.requests = counter("must_requests", "requests answered", ["status"])
        self.request_seconds = histogram(
            "must_request_seconds", "from a request's last byte to its answer", buckets=SECONDS
        )
        self.waiting = gauge("must_images_waiting", "images that are not answered yet")
        self.body_bytes = gauge("must_body_bytes", "bytes of requests that are held now")
        self.images = counter("must_images", "images classified")
        self.abstained = counter("must_abstained", "images for which no class was named")
        # forward passes, and the model
        self.batch = histogram("must_batch_images", "images of a forward pass", buckets=IMAGE_BUCKETS)
        self.forward = histogram("must_forward_seconds", "a forward pass", buckets=SECONDS)
        self.model = gauge("must_model_info", "1 for the version that is served", ["version"])
        self.swaps = counter("must_model_swaps", "new versions loaded while serving")
        self.swap_failures = counter("must_model_swap_failures", "failed tries to find or load the newest version")

    def observe_pass(self, images: int, seconds: float) -> None:
        self.batch.observe(images)
        self.forward.observe(seconds)

    def text(self) -> bytes:
        return generate_latest(self.registry)
