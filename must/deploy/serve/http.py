"""The server's HTTP API: an ASGI application with a few fixed addresses.

POST /classify                 the body is an image file; returns class names as JSON
POST /v2/models/NAME/infer     the open inference protocol, JSON or with binary data
GET  /v2, /v2/models/NAME      the metadata of the server and of the model
GET  /v2/health/live, /v2/health/ready, /v2/models/NAME/ready, /metrics
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine, MutableMapping
from typing import Any, NamedTuple, TypeVar
from urllib.parse import parse_qsl

import must
from must.base.storage.api import loads
from must.deploy.serve.models import ServedModel
from must.deploy.serve.predictions import metadata_of, tensor, to_json
from must.deploy.serve.protocol import (
    InferRequest,
    Limits,
    Refused,
    Tensor,
    expect,
    read_parameters,
    read_request,
)
from must.deploy.serve.work import Work

logger = logging.getLogger(__name__)

Scope = MutableMapping[str, Any]
T = TypeVar("T")
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

JSON, BINARY = b"application/json", b"application/octet-stream"
HEADER_LENGTH = b"inference-header-content-length"
CLOSE = (b"connection", b"close")
# Limits of JSON, whose parser blocks all threads: enough for one image of the model's size. Files and raw tensors have
# no such limit.
VALUES_A_PIXEL, FEWEST_VALUES, OBJECTS = 4, 100_000, 1000
PIECE = 1 << 18
LARGE_JSON = 1 << 16  # bytes of JSON above which it is parsed in a thread, one request at a time
LINGER = 2.0  # seconds in which the rest of a refused request is read, so that the client reads the response


class Reply(NamedTuple):
    """A response; `more`: additional headers."""

    body: bytes
    kind: bytes = JSON
    status: int = 200
    more: tuple[tuple[bytes, bytes], ...] = ()


class App:
    def __init__(self, work: Work, name: str) -> None:
        self.work, self.name, self.model_parts = work, name, ["v2", "models", name]
        self.large_json = asyncio.Lock()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        exchange = Exchange(self.work, dict(scope["headers"]), receive)
        start = time.perf_counter()
        try:
            reply = await self.route(scope, exchange)
        except ClientGone:
            return
        except Refused as refused:
            reply = refusal_reply(refused)
        except Exception:  # a bug; the server logs it and continues
            logger.exception("must serve: a request failed")
            reply = refusal_reply(Refused(500, "internal error"))
        finally:
            exchange.close()  # before sending: a client that does not read the response must not hold memory
        if exchange.unread:
            await send_and_linger(reply, receive, send)
        else:
            await send_reply(reply, send, *([CLOSE] if self.work.draining else []))
        if exchange.counts:
            self.work.metrics.requests.labels("http", str(reply.status)).inc()
            self.work.metrics.request_seconds.labels("http").observe(time.perf_counter() - (exchange.read_at or start))

    async def route(self, scope: Scope, exchange: Exchange) -> Reply:
        """Raises Refused: no such address, or an error of the request's handler; ClientGone."""
        parts = scope["path"].strip("/").split("/")
        if scope["method"] == "POST":
            exchange.counts = True
            if parts == ["classify"]:
                return await self.classify(scope, exchange)
            expect(parts == [*self.model_parts, "infer"], f"POST to /classify or /v2/models/{self.name}/infer", 404)
            return await self.infer(exchange)
        exchange.unread = False
        expect(scope["method"] in ("GET", "HEAD"), "only GET and POST are allowed", 405)
        return self.get(parts)

    def get(self, parts: list[str]) -> Reply:
        if parts == ["metrics"]:
            self.work.metrics.waiting.set(self.work.waiting)
            self.work.metrics.megapixels.set(self.work.megapixels)
            self.work.metrics.body_bytes.set(self.work.held_bytes)
            return Reply(self.work.metrics.text(), b"text/plain; version=0.0.4; charset=utf-8")
        if parts == ["v2", "health", "live"]:
            return Reply(as_json({"live": True}))
        if parts in (["v2", "health", "ready"], [*self.model_parts, "ready"]):
            content = {"name": self.name, "ready": self.work.ready}
            return Reply(as_json(content), status=200 if self.work.ready else 503)
        if parts in (["v2"], [""]):
            return Reply(
                as_json({"name": "must-serve", "version": must.__version__, "extensions": ["binary_tensor_data"]})
            )
        expect(parts == self.model_parts, f"no such address; the model is at /v2/models/{self.name}", 404)
        with self.work.models.borrow() as served:
            return Reply(as_json(metadata_of(self.name, served)))

    async def classify(self, scope: Scope, exchange: Exchange) -> Reply:
        """The body is an image file, the query has parameters: top_k, abstain."""
        values = read_query(scope["query_string"])
        request = InferRequest([await exchange.read()], **values)
        with self.work.models.borrow() as served:
            predictions = await cancel_on_disconnect(self.work.predict(request, served), exchange.receive)
            return Reply(as_json({"model": self.name, "version": served.version} | to_json(predictions, 0)))

    async def infer(self, exchange: Exchange) -> Reply:
        data = await exchange.read()
        with self.work.models.borrow() as served:
            request = await self.read(data, exchange.headers, served)
            predictions = await cancel_on_disconnect(self.work.predict(request, served), exchange.receive)
            results = [tensor(predictions, output) for output in request.outputs]
            return inference_reply(self.name, served.version, request, results)

    async def read(self, data: bytes, headers: dict[bytes, bytes], served: ServedModel) -> InferRequest:
        """Raises Refused: the body does not follow the protocol, or other large bodies took too long."""
        length = len(data)
        if HEADER_LENGTH in headers:
            text = headers[HEADER_LENGTH]
            expect(text.isdigit() and int(text[:12]) <= len(data), "Inference-Header-Content-Length is wrong")
            length = int(text[:12])
        view, limits = memoryview(data), self.work.limits(served)
        if length <= LARGE_JSON:
            return parse_request(view, length, limits)
        # One at a time: its Python objects take up to thirty times its bytes, which max_memory does not count.
        try:
            async with asyncio.timeout(self.work.config.patience):
                await self.large_json.acquire()
        except TimeoutError:
            raise Refused(503, "the server is busy with other large requests; try again") from None
        try:
            return await asyncio.to_thread(parse_request, view, length, limits)
        finally:
            self.large_json.release()


class ClientGone(Exception):  # noqa: N818
    """The client closed the connection before the response."""


async def cancel_on_disconnect(coroutine: Coroutine[Any, Any, T], receive: Receive) -> T:
    """The coroutine's result; cancels the coroutine when the client disconnects. Raises ClientGone."""

    async def wait_for_disconnect() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    working, disconnect = asyncio.create_task(coroutine), asyncio.create_task(wait_for_disconnect())
    try:
        await asyncio.wait({working, disconnect}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientGone
        return working.result()
    finally:
        working.cancel()
        disconnect.cancel()
        await asyncio.wait({working, disconnect})


class Exchange:
    """A request's body, read once, within limits of size, time and the server's memory."""

    def __init__(self, work: Work, headers: dict[bytes, bytes], receive: Receive) -> None:
        self.work, self.headers, self.receive = work, headers, receive
        self.reserved = 0  # bytes
        self.unread = True  # the body has not been read to its end
        self.counts = False  # in the metrics
        self.read_at = 0.0

    async def read(self) -> bytes:
        """Raises Refused: 413, 408, 415 or 503; ClientGone."""
        expect(
            self.headers.get(b"content-encoding", b"identity") == b"identity", "send the body without compression", 415
        )
        length = self.headers.get(b"content-length", b"0")
        self.check_size(int(length) if length.isdigit() and len(length) < 19 else self.work.max_body + 1)
        parts: list[bytes] = []
        try:
            async with asyncio.timeout(self.work.config.patience):
                while self.unread:
                    message = await self.receive()
                    if message["type"] == "http.disconnect":
                        raise ClientGone
                    parts.append(message.get("body", b""))
                    self.work.reserve(len(parts[-1]))
                    self.reserved += len(parts[-1])
                    self.check_size(self.reserved)
                    self.unread = message.get("more_body", False)
        except TimeoutError:
            raise Refused(408, f"the body was not received within {self.work.config.patience:g} seconds") from None
        self.read_at = time.perf_counter()
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def check_size(self, size: int) -> None:
        expect(size <= self.work.max_body, f"the body is above {self.work.config.max_body:g} MB", 413)

    def close(self) -> None:
        self.work.release(self.reserved)
        self.reserved = 0


def read_query(query: bytes) -> dict[str, Any]:
    """top_k and abstain from ?top_k=3&abstain=0.5. Raises Refused."""
    values: dict[str, Any] = {}
    for name, value in parse_qsl(query.decode("latin-1")[:2000], keep_blank_values=True, max_num_fields=None):
        try:
            if name == "top_k":
                values[name] = int(value[:9])
            elif name == "abstain":
                values[name] = float(value)
            else:
                raise Refused(400, f"unknown parameter {name[:40]}; top_k and abstain are known")
        except ValueError:
            raise Refused(400, f"{name} must be a number") from None
    return read_parameters(values)


def parse_request(data: memoryview, length: int, limits: Limits) -> InferRequest:
    """A body that begins with `length` bytes of JSON. Raises Refused: it does not follow the protocol."""
    most = max(FEWEST_VALUES, VALUES_A_PIXEL * limits.size**2)
    return read_request(parse(data[:length], most), data[length:], limits)


def parse(data: memoryview, most: int = FEWEST_VALUES) -> dict[str, Any]:
    """A JSON object. Raises Refused: it is not one, or has more than `most` values."""
    values = objects = 0
    for start in range(0, len(data), PIECE):
        piece = bytes(data[start : start + PIECE])
        values, objects = values + piece.count(b",") + piece.count(b"["), objects + piece.count(b"{")
        expect(
            values <= most and objects <= OBJECTS,
            "JSON of too many values; send pictures as files, or pixels as binary data",
            413,
        )
    try:
        request = loads(bytes(data))
    except (ValueError, RecursionError):
        raise Refused(400, "the body is no JSON; a picture as it is goes to /classify") from None
    except MemoryError:
        raise Refused(503, "the server has no memory left for this request; try again") from None
    expect(isinstance(request, dict), "the body must be a JSON object")
    return request


def inference_reply(name: str, version: str, request: InferRequest, results: list[Tensor]) -> Reply:
    """The protocol's response: JSON, followed by the tensors that were requested as binary data."""
    outputs, blobs = [], []
    for output, result in zip(request.outputs, results, strict=True):
        entry: dict[str, Any] = {"name": result.name, "datatype": result.datatype, "shape": result.shape}
        if output.binary:
            blobs.append(result.raw())
            entry["parameters"] = {"binary_data_size": len(blobs[-1])}
        else:
            entry["data"] = result.plain()
        outputs.append(entry)
    content = {"model_name": name, "model_version": version, "outputs": outputs}
    header = as_json(content | ({"id": request.id} if request.id else {}))
    if not blobs:
        return Reply(header)
    return Reply(b"".join([header, *blobs]), BINARY, more=((HEADER_LENGTH, str(len(header)).encode()),))


def refusal_reply(refused: Refused) -> Reply:
    more = ((b"retry-after", b"1"),) if refused.retry else ()
    return Reply(as_json({"error": refused.reason}), status=refused.status, more=more)


def as_json(content: Any) -> bytes:
    return json.dumps(content, separators=(",", ":")).encode() + b"\n"


async def send_reply(reply: Reply, send: Send, *more: tuple[bytes, bytes], last: bool = True) -> None:
    headers = [(b"content-type", reply.kind), (b"content-length", str(len(reply.body)).encode()), *reply.more, *more]
    await send({"type": "http.response.start", "status": reply.status, "headers": headers})
    await send({"type": "http.response.body", "body": reply.body, "more_body": not last})


async def send_and_linger(reply: Reply, receive: Receive, send: Send) -> None:
    """Responds to a request whose body is not read, then reads the rest for LINGER seconds: closing a connection with
    unread bytes resets it, and the client would not receive the response."""
    await send_reply(reply, send, CLOSE, last=False)
    try:
        async with asyncio.timeout(LINGER):
            while (message := await receive())["type"] == "http.request" and message.get("more_body", False):
                pass
    except TimeoutError:
        pass
    await send({"type": "http.response.body", "body": b"", "more_body": False})
