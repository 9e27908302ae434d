"""The server's gRPC side: the open inference protocol's service, by the same work as HTTP."""

from __future__ import annotations

import sys
import time
import traceback
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
from google.protobuf.message import DecodeError

import must
from must.deploy.serve.answers import tensors
from must.deploy.serve.asked import Asked, Limits, read_asked
from must.deploy.serve.described import metadata_of, server_metadata
from must.deploy.serve.messages import CALLS, SERVICE, message
from must.deploy.serve.refused import GRPC_STATUS, Refused, wanted
from must.deploy.serve.tensors import Tensor
from must.deploy.serve.work import Work

IDLE = 300_000  # milliseconds after which a connection without calls is closed
PING, PONG = 30_000, 10_000  # milliseconds: a client that does not answer is let go
LONGEST_CONNECTION = 3_600_000
STREAMS = 64  # calls of one connection at a time


class Service:
    """A method a call; each takes a request's message and gives the answer's."""

    def __init__(self, work: Work, name: str) -> None:
        self.work, self.name = work, name
        self.answers = {call: message(f"{call}Response") for call in CALLS}

    async def server_live(self, request: Any) -> Any:
        return self.answers["ServerLive"](live=True)

    async def server_ready(self, request: Any) -> Any:
        return self.answers["ServerReady"](ready=self.work.ready)

    async def model_ready(self, request: Any) -> Any:
        return self.answers["ModelReady"](ready=self.work.ready and self.is_served(request.name, request.version))

    async def server_metadata(self, request: Any) -> Any:
        return self.answers["ServerMetadata"](**server_metadata(must.__version__))

    async def model_metadata(self, request: Any) -> Any:
        self.check_model(request.name, request.version)
        with self.work.models.held() as served:
            described = metadata_of(self.name, served)
        described.pop("parameters")
        return self.answers["ModelMetadata"](**described)

    async def model_infer(self, request: Any) -> Any:
        self.check_model(request.model_name, request.model_version)
        size = request.ByteSize()  # its bytes are held twice, and counted once
        self.work.hold(size)
        try:
            with self.work.models.held() as served:
                asked = read(request, self.work.limits(served))
                answer = await self.work.answer(asked, served)
                found = tensors(answer, asked)
        finally:
            self.work.let_go(size)
        reply = self.answers["ModelInfer"](model_name=self.name, model_version=served.version, id=asked.id)
        for tensor in found:
            reply.outputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
            reply.raw_output_contents.append(tensor.raw())
        return reply

    def is_served(self, name: str, version: str) -> bool:
        current = self.work.models.current
        return name == self.name and current is not None and version in ("", current.version)

    def check_model(self, name: str, version: str) -> None:
        current = self.work.models.current
        wanted(name == self.name, f"no model of that name; '{self.name}' is served", 404)
        if version:
            served = current.version if current else ""
            wanted(version == served, f"version '{served}' is served, no other", 404)


def read(request: Any, limits: Limits) -> Asked:
    """A ModelInferRequest. Raises Refused: it is not what this server takes."""
    wanted(len(request.inputs) == 1, 'there must be one input, named "image"')
    wanted(len(request.raw_input_contents) <= 1, "there are more raw contents than inputs")
    tensor, blob = request.inputs[0], b""
    described = {"name": tensor.name, "datatype": tensor.datatype, "shape": list(tensor.shape)}
    if request.raw_input_contents:
        blob = request.raw_input_contents[0]
    elif tensor.datatype == "BYTES":
        blob = Tensor("", "BYTES", [], list(tensor.contents.bytes_contents)).raw()
    else:
        contents = tensor.contents
        described["data"] = list(contents.uint_contents if tensor.datatype == "UINT8" else contents.fp32_contents)
    if "data" not in described:
        described["parameters"] = {"binary_data_size": len(blob)}
    asked = {
        "inputs": [described],
        "outputs": [{"name": output.name, "parameters": plain(output.parameters)} for output in request.outputs],
        "parameters": plain(request.parameters),
        "id": request.id,
    }
    return read_asked(asked, memoryview(blob), limits)


def plain(parameters: Any) -> dict[str, Any]:
    """InferParameters as JSON has them."""
    chosen = {name: value.WhichOneof("parameter_choice") for name, value in parameters.items()}
    return {name: getattr(parameters[name], choice) for name, choice in chosen.items() if choice}


def handler(work: Work, service: Service, call: str) -> Any:
    """A unary call: refusals become codes, errors of ours a line in the log."""
    method: Callable[[Any], Awaitable[Any]] = getattr(service, snake(call))
    request_class = message(f"{call}Request")

    async def attempt(data: bytes) -> bytes:
        try:
            request = request_class.FromString(data)
        except DecodeError:
            raise Refused(400, f"the request is no {call}Request") from None
        return (await method(request)).SerializeToString()

    async def handle(data: bytes, context: Any) -> bytes:
        begun, refused, answer = time.perf_counter(), None, b""
        try:
            answer = await attempt(data)
        except Refused as error:
            refused = error
        except Exception:  # ours; the server goes on, and the log has it
            traceback.print_exc(file=sys.stderr)
            refused = Refused(500, "internal error")
        if call == "ModelInfer":
            work.metrics.requests.labels("grpc", str(refused.status if refused else 200)).inc()
            work.metrics.request_seconds.labels("grpc").observe(time.perf_counter() - begun)
        if refused:
            await context.abort(getattr(grpc.StatusCode, GRPC_STATUS[refused.status]), refused.reason)
        return answer

    return grpc.unary_unary_rpc_method_handler(handle)


def snake(name: str) -> str:
    return "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in name).lstrip("_")


async def start(work: Work, name: str, host: str, port: int) -> tuple[grpc.aio.Server, int]:
    """(the server, which listens, its port). Raises ValueError: it cannot listen there."""
    service = Service(work, name)
    server = grpc.aio.server(
        maximum_concurrent_rpcs=work.config.connections,
        options=[
            ("grpc.max_receive_message_length", work.max_body),
            ("grpc.max_concurrent_streams", STREAMS),
            ("grpc.max_connection_idle_ms", IDLE),
            ("grpc.max_connection_age_ms", LONGEST_CONNECTION),
            ("grpc.max_connection_age_grace_ms", 60_000),
            ("grpc.keepalive_time_ms", PING),
            ("grpc.keepalive_timeout_ms", PONG),
            ("grpc.so_reuseport", 0),
        ],
    )
    methods = {call: handler(work, service, call) for call in CALLS}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, methods),))
    try:
        bound = server.add_insecure_port(f"{host}:{port}")
    except RuntimeError:
        raise ValueError(f"--grpc-port {port}: cannot listen at {host}:{port}; is another server there?") from None
    await server.start()
    return server, bound
