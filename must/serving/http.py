"""The server as a Starlette application: its addresses, limits of requests, and decoding of their images.

POST /classify                 the body is an image file; returns class names as JSON
POST /v2/models/NAME/infer     the open inference protocol, in JSON
GET  /v2, /v2/models/NAME      the metadata of the server and of the model; also /v2/models/NAME/versions/VERSION
GET  /v2/health/live, /v2/health/ready, /v2/models/NAME/ready, /metrics"""

import asyncio
import json
import logging
import time
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import numpy as np
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

import must
from must.base.processes import count_cores
from must.config.deploy import ServeConfig
from must.prediction.onnx_model import STORED
from must.prediction.writer import Options, rank_classes
from must.serving.metrics import ServerMetrics
from must.serving.models import Models, ServedModel
from must.serving.protocol import (
    INPUT,
    InferRequest,
    RankedClasses,
    Refused,
    expect,
    make_classification,
    make_output_tensors,
    parse_request,
    read_parameters,
)

logger = logging.getLogger(__name__)

LARGE_JSON = 1 << 16  # bytes of JSON above which it is parsed in a thread
BODIES = 16  # all bodies together may be so many times as large as one
CLOSED = 499  # the status in the metrics of a request whose client has left
CLIENT_TIMEOUT = 30.0  # seconds that a client may take to send a request, and an answer may take


class Json(JSONResponse):
    """One line, which may contain names that are not UTF-8."""

    def render(self, content: Any) -> bytes:
        return json.dumps(content, separators=(",", ":")).encode() + b"\n"


class Refusal(Json):
    """The response to a request that is refused."""

    def __init__(self, refused: Refused, headers: dict[str, str] | None = None) -> None:
        retry = {"retry-after": "1"} if refused.status == 503 else {}
        super().__init__({"error": refused.reason}, refused.status, {**(headers or {}), **retry})


def make_app(api: "Api") -> Starlette:
    routes = [
        Route("/classify", api.answer(api.classify), methods=["POST"]),
        Route("/v2/health/live", api.live),
        Route("/v2/health/ready", api.ready),
        Route("/metrics", api.show_metrics),
        Route("/", api.server),
        Route("/v2", api.server),
    ]
    for version in ("", "/versions/{version}"):
        model = f"/v2/models/{api.config.name}{version}"
        routes += [
            Route(f"{model}/infer", api.answer(api.infer), methods=["POST"]),
            Route(f"{model}/ready", api.ready),
            Route(model, api.model),
        ]
    app = Starlette(routes=routes, exception_handlers={HTTPException: api.refuse_address, Refused: refuse})
    app.router.redirect_slashes = False  # the redirection would repeat the client's Host
    return app


class Api:
    """The functions behind the addresses. Runs in the event loop; decodes in threads."""

    def __init__(self, config: ServeConfig, models: Models, metrics: ServerMetrics) -> None:
        self.config, self.models, self.metrics = config, models, metrics
        self.loop, self.threads = asyncio.get_running_loop(), count_cores()
        self.decoders = ThreadPoolExecutor(self.threads, "decode")
        self.waiting = 0  # images of requests that are not answered yet
        self.held_bytes = 0  # of the bodies of requests
        self.draining = False  # once it is true, only a new pod will be ready

    def answer(self, handler: Callable[[Request, bytes], Awaitable[Any]]) -> Callable[[Request], Awaitable[Response]]:
        """Reads a request's body, and responds with what the handler makes of it, as JSON."""

        async def respond(request: Request) -> Response:
            body, start = b"", time.perf_counter()
            response: Response
            try:
                body = await self.read_body(request)
                start = time.perf_counter()
                async with asyncio.timeout(CLIENT_TIMEOUT):
                    response = Json(await handler(request, body))
            except Refused as refused:
                response = Refusal(refused)
            except TimeoutError:
                response = Refusal(Refused(504, f"no answer within {CLIENT_TIMEOUT:g} seconds"))
            except ClientDisconnect:
                response = Response(status_code=CLOSED)
            except Exception:  # a bug; the server logs it and continues
                logger.exception("must serve: a request failed")
                response = Refusal(Refused(500, "internal error"))
            finally:  # before the response is sent: a client that does not read it must not hold memory
                self.held_bytes -= len(body)
            self.metrics.requests.labels(str(response.status_code)).inc()
            self.metrics.request_seconds.observe(time.perf_counter() - start)
            return self.close_if_draining(response)

        return respond

    def close_if_draining(self, response: Response) -> Response:
        """Tells clients that keep their connections to open another one, which reaches another pod."""
        if self.draining:
            response.headers["connection"] = "close"
        return response

    async def read_body(self, request: Request) -> bytes:
        """The body; its size is added to `held_bytes`."""
        config, size, parts = self.config, 0, list[bytes]()
        large = f"the body is above {config.max_body:g} MB"
        try:
            plain = request.headers.get("content-encoding", "identity") == "identity"
            expect(plain, "send the body without compression", 415)
            expect(int(request.headers.get("content-length", "0")[:18]) <= config.max_body * 1e6, large, 413)
            async with asyncio.timeout(CLIENT_TIMEOUT):
                async for part in request.stream():
                    full = self.held_bytes + len(part) > BODIES * config.max_body * 1e6
                    expect(not full, "the memory for request bodies is full; try again later", 503)
                    self.held_bytes += len(part)
                    size += len(part)
                    expect(size <= config.max_body * 1e6, large, 413)
                    parts.append(part)
        except BaseException as error:
            self.held_bytes -= size
            if isinstance(error, TimeoutError):
                error = Refused(408, f"the body was not received within {CLIENT_TIMEOUT:g} seconds")
            raise error from None
        return parts[0] if len(parts) == 2 else b"".join(parts)  # the stream ends with an empty part

    async def classify(self, request: Request, body: bytes) -> dict[str, Any]:
        """The body is an image file, the query has parameters: top_k, abstain."""
        inference = InferRequest([body], **read_query(request))
        with self.models.borrow() as served:
            predictions = await self.predict(inference, served)
            return {"model": self.config.name, "version": served.version, **make_classification(predictions)}

    async def infer(self, request: Request, body: bytes) -> dict[str, Any]:
        binary = "inference-header-content-length" in request.headers
        expect(not binary, "this server takes no binary tensors; send JSON, with pictures as base64")
        with self.borrow(request) as served:
            inference = await self.parse(body, served)
            predictions = await self.predict(inference, served)
            outputs = make_output_tensors(predictions, inference.outputs)
            answer = {"model_name": self.config.name, "model_version": served.version, "outputs": outputs}
            return answer | ({"id": inference.id} if inference.id else {})

    async def parse(self, body: bytes, served: ServedModel) -> InferRequest:
        classifier = served.classifier
        limits = self.config.max_images, classifier.preprocess.size, not classifier.takes_pixels
        if len(body) <= LARGE_JSON:
            return parse_request(body, *limits)
        return await self.loop.run_in_executor(self.decoders, parse_request, body, *limits)

    async def live(self, request: Request) -> Response:
        return self.close_if_draining(Json({"live": True}))

    @contextmanager
    def borrow(self, request: Request) -> Iterator[ServedModel]:
        """The current model. Raises Refused: the address names another version."""
        with self.models.borrow() as served:
            version = request.path_params.get("version", served.version)
            expect(version == served.version, f"version {version} is not served; {served.version} is", 404)
            yield served

    async def ready(self, request: Request) -> Response:
        ready = self.models.current is not None and not self.draining
        if ready:
            with self.borrow(request):
                pass
        return self.close_if_draining(Json({"name": self.config.name, "ready": ready}, 200 if ready else 503))

    async def server(self, request: Request) -> Response:
        return Json({"name": "must-serve", "version": must.__version__, "extensions": []})

    async def model(self, request: Request) -> Response:
        """The protocol's metadata of the model; -1 in a shape: the number of images, or top_k."""
        with self.borrow(request) as served:
            classes, size = served.classifier.classes, served.classifier.preprocess.size
            content = {
                "name": self.config.name,
                "versions": [served.version],
                "platform": "onnxruntime_onnx",
                "inputs": [{"name": INPUT, "datatype": "BYTES", "shape": [-1]}],
                "outputs": [
                    {"name": "class", "datatype": "BYTES", "shape": [-1, -1]},
                    {"name": "top_probability", "datatype": "FP32", "shape": [-1, -1]},
                    {"name": "abstained", "datatype": "BOOL", "shape": [-1]},
                    {"name": "probability", "datatype": "FP32", "shape": [-1, len(classes)]},
                    {"name": "similarity", "datatype": "FP32", "shape": [-1]},
                ],
                "parameters": {"classes": classes, "size": size, "threshold": served.threshold},
            }
            return Json(content)

    async def show_metrics(self, request: Request) -> Response:
        metrics = self.metrics
        metrics.waiting.set(self.waiting)
        metrics.body_bytes.set(self.held_bytes)
        return self.close_if_draining(Response(metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8"))

    async def refuse_address(self, request: Request, error: Any) -> Response:
        known = f"images go to POST /classify, the model is at /v2/models/{self.config.name}"
        if error.status_code == 405 and request.url.path == "/classify":
            known = "POST the image file itself: curl --data-binary @photo.jpg ADDRESS/classify"
        headers, reason = dict(error.headers or {}), "no such address"
        if error.status_code == 405:  # Starlette's order is that of a set: another one in each process
            headers["Allow"] = ", ".join(sorted(headers["Allow"].split(", ")))
            reason = f"only {headers['Allow']} is allowed here"
        return self.close_if_draining(Refusal(Refused(error.status_code, f"{reason}; {known}"), headers))

    async def predict(self, request: InferRequest, served: ServedModel) -> RankedClasses:
        futures = [self.loop.create_future() for _ in request.images]
        turns = asyncio.Semaphore(self.threads)  # of this request: the pictures of others come between its own

        async def prepare(image: bytes | np.ndarray, future: asyncio.Future[Any]) -> None:
            async with turns:
                await self.loop.run_in_executor(self.decoders, served.prepare, image, future)

        self.waiting += len(futures)
        try:
            await asyncio.gather(*map(prepare, request.images, futures))
            rows = np.stack([await future for future in futures])
        finally:
            self.waiting -= len(futures)
            for future in futures:
                future.cancel()
        probability = rows[:, :-1]
        finite = bool(np.isfinite(probability).all())
        expect(finite, "the model's output is not finite; remove NaN and infinity from the input", 422)
        unsure = served.threshold if request.abstain is None else request.abstain
        unsure = served.stored if unsure == STORED else unsure
        options = Options(request.top_k or self.config.top_k, unsure)
        classes = served.classifier.classes
        ranked = [rank_classes("", row[:-1], float(row[-1]), classes, options) for row in rows]
        self.metrics.images.inc(len(ranked))
        self.metrics.abstained.inc(sum(one.abstained for one in ranked))
        return RankedClasses(ranked, probability, unsure)


async def refuse(request: Request, error: Any) -> Response:
    return Refusal(error)


def read_query(request: Request) -> dict[str, Any]:
    """{"top_k", "abstain"} from ?top_k=3&abstain=0.5."""
    values: dict[str, Any] = {}
    for name, value in request.query_params.items():
        expect(name in ("top_k", "abstain"), f"unknown parameter {name[:40]}; top_k and abstain are known")
        try:
            values[name] = int(value[:9]) if name == "top_k" else float(value)
        except ValueError:
            raise Refused(400, f"{name} must be a number") from None
    return read_parameters(values)
