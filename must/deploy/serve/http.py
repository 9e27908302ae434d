"""The server as a Starlette application: its addresses; admission of requests, and decoding of their images.

POST /classify                 the body is an image file; returns class names as JSON
POST /v2/models/NAME/infer     the open inference protocol, in JSON
GET  /v2, /v2/models/NAME      the metadata of the server and of the model; also /v2/models/NAME/versions/VERSION
GET  /v2/health/live, /v2/health/ready, /v2/models/NAME/ready, /metrics"""

import asyncio
import json
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any, TypeVar

import numpy as np
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

import must
from must.base.processes import count_cores
from must.config.deploy import MOST_WAITING, ServeConfig
from must.deploy.onnx_model import STORED
from must.deploy.predict.writer import Options, rank_classes
from must.deploy.serve.metrics import ServerMetrics
from must.deploy.serve.models import Decoders, Models, ServedModel, fail
from must.deploy.serve.protocol import (
    COST_OF_PIXELS,
    INPUT,
    Cost,
    InferRequest,
    RankedClasses,
    Refused,
    estimate_cost,
    expect,
    make_classification,
    make_output_tensors,
    parse_request,
    read_parameters,
)

logger = logging.getLogger(__name__)

T = TypeVar("T")

LARGE_JSON = 1 << 16  # bytes of JSON above which it is parsed in a thread, one request at a time
LINGER = 2.0  # seconds in which the rest of a refused request is read, so that the client reads the response
CLOSED = 499  # the status in the metrics of a request whose client has left
SMALL = 1 << 18  # bytes of files up to which their headers are read in the event loop; above it in a thread
CLIENT_TIMEOUT = 30.0  # seconds that a client may take to send a request, and an answer may take
DELAY = 0.5  # seconds by which each megapixel puts a picture back in the queue: small ones pass large ones
FULL = "the queue of waiting images is full; try again later"


class Json(JSONResponse):
    """One line, which may contain names that are not UTF-8."""

    def render(self, content: Any) -> bytes:
        return json.dumps(content, separators=(",", ":")).encode() + b"\n"


class Refusal(Json):
    """The response to a request that is refused. After it the rest of a body is read for LINGER seconds: closing a
    connection with unread bytes resets it, and the client would not receive the response."""

    def __init__(self, refused: Refused, headers: dict[str, str] | None = None) -> None:
        self.unread = refused.unread
        more = {"connection": "close"} if self.unread else {}
        retry = {"retry-after": "1"} if refused.status == 503 else {}
        super().__init__({"error": refused.reason}, refused.status, {**(headers or {}), **more, **retry})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not self.unread:
            await super().__call__(scope, receive, send)
            return
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        await send({"type": "http.response.body", "body": self.body, "more_body": True})
        with suppress(TimeoutError):
            async with asyncio.timeout(LINGER):
                while (await receive()).get("more_body", False):
                    pass
        await send({"type": "http.response.body", "body": b"", "more_body": False})


@dataclass(eq=False)
class PendingRequest:
    """The images of one request that wait for their predictions."""

    megapixels: float
    futures: list[asyncio.Future[Any]]


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
        self.loop, self.large_json = asyncio.get_running_loop(), asyncio.Lock()
        self.decoders = Decoders(config.decoders or count_cores(), int(config.decoding_bytes))
        self.requests: list[PendingRequest] = []  # that were admitted and have no predictions yet
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
                response = Json(await handler(request, body))
            except Refused as refused:
                response = Refusal(refused)
            except ClientDisconnect:
                response = Response(status_code=CLOSED)
            except Exception:  # a bug; the server logs it and continues
                logger.exception("must serve: a request failed")
                response = Refusal(Refused(500, "internal error"))
            finally:  # before the response is sent: a client that does not read it must not hold memory
                self.held_bytes -= len(body)
            self.metrics.requests.labels("http", str(response.status_code)).inc()
            self.metrics.request_seconds.labels("http").observe(time.perf_counter() - start)
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
                    full = self.held_bytes + len(part) > config.body_bytes
                    expect(not full, "the memory for request bodies is full; try again later", 503)
                    self.held_bytes += len(part)
                    size += len(part)
                    expect(size <= config.max_body * 1e6, large, 413)
                    parts.append(part)
        except BaseException as error:
            self.held_bytes -= size
            if isinstance(error, TimeoutError):
                error = Refused(408, f"the body was not received within {CLIENT_TIMEOUT:g} seconds")
            if isinstance(error, Refused):
                error.unread = True
            raise error from None
        return parts[0] if len(parts) == 2 else b"".join(parts)  # the stream ends with an empty part

    async def classify(self, request: Request, body: bytes) -> dict[str, Any]:
        """The body is an image file, the query has parameters: top_k, abstain."""
        inference = InferRequest([body], **read_query(request))
        with self.models.borrow() as served:
            predictions = await cancel_on_disconnect(self.predict(inference, served), request.receive)
            return {"model": self.config.name, "version": served.version, **make_classification(predictions)}

    async def infer(self, request: Request, body: bytes) -> dict[str, Any]:
        binary = "inference-header-content-length" in request.headers
        expect(not binary, "this server takes no binary tensors; send JSON, with pictures as base64")
        with self.borrow(request) as served:
            inference = await self.parse(body, served)
            predictions = await cancel_on_disconnect(self.predict(inference, served), request.receive)
            outputs = make_output_tensors(predictions, inference.outputs)
            answer = {"model_name": self.config.name, "model_version": served.version, "outputs": outputs}
            return answer | ({"id": inference.id} if inference.id else {})

    async def parse(self, body: bytes, served: ServedModel) -> InferRequest:
        classifier = served.classifier
        limits = self.config.max_images, classifier.preprocess.size, not classifier.takes_pixels
        if len(body) <= LARGE_JSON:
            return parse_request(body, *limits)
        # One at a time: its Python objects take up to thirty times its bytes, which --memory does not count.
        try:
            async with asyncio.timeout(CLIENT_TIMEOUT):
                await self.large_json.acquire()
        except TimeoutError:
            raise Refused(503, "the server is busy with other large requests; try again") from None
        try:
            return await asyncio.to_thread(parse_request, body, *limits)
        finally:
            self.large_json.release()

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
        metrics.megapixels.set(self.megapixels)
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

    @property
    def waiting(self) -> int:
        """Images."""
        return sum(len(request.futures) for request in self.requests)

    @property
    def megapixels(self) -> float:
        return sum(request.megapixels for request in self.requests)

    async def predict(self, request: InferRequest, served: ServedModel) -> RankedClasses:
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
            async with asyncio.timeout(CLIENT_TIMEOUT):
                rows = np.stack([await future for future in pending.futures])
        except TimeoutError:
            raise Refused(504, f"no answer within {CLIENT_TIMEOUT:g} seconds") from None
        finally:
            self.requests = [other for other in self.requests if other is not pending]
            for future in pending.futures:
                future.cancel()
        probability = rows[:, :-1]
        finite = bool(np.isfinite(probability).all())
        expect(finite, "the model's output is not finite; remove NaN and infinity from the input", 422)
        unsure = served.threshold if request.abstain is None else request.abstain
        unsure = served.stored if unsure == STORED else unsure
        options = Options(request.top_k or self.config.top_k, unsure)
        classes = served.classifier.classes
        ranked = [rank_classes("", row[:-1], float(row[-1]), classes, options) for row in rows]
        self.metrics.observe_predictions(ranked)
        return RankedClasses(ranked, probability, unsure)

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
        while waiting > MOST_WAITING or megapixels > self.config.queue_pixels:
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


async def cancel_on_disconnect(coroutine: Coroutine[Any, Any, T], receive: Receive) -> T:
    """The coroutine's result; cancels the coroutine when the client disconnects. Raises ClientDisconnect."""

    async def wait_for_disconnect() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    working, leaving = asyncio.ensure_future(coroutine), asyncio.ensure_future(wait_for_disconnect())
    try:
        await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        working.cancel()
        await asyncio.wait((working,))
        raise ClientDisconnect
    finally:
        working.cancel()
        leaving.cancel()
