"""Whatever clients send is answered with a status, and the server goes on."""

import base64
import json
import socket
import threading
import tracemalloc
from contextlib import ExitStack, suppress

import pytest
import uvicorn
from starlette.responses import Response

from benchmarks.image_cost import webp_animated
from must.deploy.serve.protocol import Refused, parse_json, parse_tensor
from must.deploy.serve.serve import Bounded, listen
from tests.common import until
from tests.deploy.serve.server import SILENCE
from tests.zoo import bomb, encoded, picture

INFER = "/v2/models/digits/infer"
POST = b"POST /classify HTTP/1.1\r\nhost: x\r\n"
CHUNKED = POST + b"connection: close\r\ntransfer-encoding: chunked\r\n\r\n"


@pytest.fixture(autouse=True)
def alive(server, pictures):
    """After each of these tests the server answers, and holds nothing of what was sent."""
    yield
    assert server.process.poll() is None, server.log
    assert server.ask("POST", "/classify", pictures[0][1])[0] == 200
    until(lambda: b"must_body_bytes 0.0" in server.ask("GET", "/metrics")[1], server.log)
    assert b"must_images_waiting 0.0" in server.ask("GET", "/metrics")[1]
    assert not server.said("Traceback"), server.log


JPEG = encoded(picture(), "JPEG")
PICTURES = {
    "nothing": (b"", "not a picture of a known format", 415),
    "another format": (encoded(picture(), "BMP"), "not a picture of a known format", 415),
    "half a jpeg": (JPEG[:200], "the picture cannot be read: ", 422),
    "only a jpeg's first bytes": (b"\xff\xd8\xff", "damaged: its headers say 0x0", 422),
    "many parts": (JPEG[:2] + b"\xff\xfe\0\2" * 4000 + JPEG[2:], "more than 3000 parts", 422),
    "more pixels than allowed": (bomb(7000, 7000), "7000x7000 is more than 40000000 pixels", 422),
    "a thread": (bomb(1, 30_000), "1x30000 is thinner than 1 to 200", 422),
}


def image(**values):
    return {"name": "image", "datatype": "BYTES", "shape": [1], "data": ["AAAA"]} | values


def request(tensor, **more):
    return json.dumps({"inputs": [tensor], **more}).encode()


ANIMATION = base64.b64encode(webp_animated(3000, 3000)).decode()  # one frame on a large canvas, of 90 bytes
BODIES = {  # the body, a part of the reason, the status if it is not 400
    "not JSON": (b"{", "the body is no JSON"),
    "a list": (b"[]", "must be a JSON object"),
    "deep": (b"[" * 100_000, "the body is no JSON"),
    "no inputs": (b"{}", '"inputs" must be a list of one tensor'),
    "inputs are an object": (b'{"inputs": {"image": 1}}', '"inputs" must be a list'),
    "an input is a number": (b'{"inputs": [1]}', "an input must be an object"),
    "two inputs": (json.dumps({"inputs": [image(), image()]}).encode(), "a list of one tensor"),
    "another name": (request(image(name="picture")), 'must be named "image"'),
    "another type": (request(image(datatype="FP16")), "must be BYTES"),
    "not base64": (request(image(data=["*"])), "a valid base64 string"),
    "not text": (request(image(data=[7])), "a string of base64"),
    "fewer files than the shape says": (request(image(shape=[2])), "1 strings, its shape says 2"),
    "a negative shape": (request(image(shape=[-1])), "a list of positive numbers"),
    "a long shape": (request(image(shape=[1] * 50)), "a list of positive numbers"),
    "true as a shape": (request(image(shape=[True])), "a list of positive numbers"),
    "a huge shape": (request(image(datatype="UINT8", shape=[1, 2**30, 2**30, 2**30])), "[N, 32, 32, 3]"),
    "too large for a byte": (request(image(datatype="UINT8", shape=[1, 32, 32, 3], data=[300] * 3072)), "0 to 255"),
    "a binary tensor": (request(image(data=None, parameters={"binary_data_size": 10})), "binary tensors are not taken"),
    "parameters are a number": (request(image(), parameters=3), '"parameters" must be an object'),
    "an unknown output": (request(image(), outputs=[{"name": "weights"}]), "class, top_probability"),
    "an output twice": (request(image(), outputs=[{"name": "class"}] * 2), "each once"),
    "outputs are names": (request(image(), outputs=["class"]), "objects with a name"),
    "a threshold above 1": (request(image(), parameters={"abstain": 1e9}), "abstain must be from 0 to 1"),
    "no class": (request(image(), parameters={"top_k": 0}), "top_k must be a whole number from 1"),
    "a long id": (request(image(), id="x" * 201), '"id" must be a short string'),
    "more images than allowed": (request(image(shape=[17], data=["AAAA"] * 17)), "16 a request", 413),
    "pictures that cost too much": (request(image(shape=[16], data=[ANIMATION] * 16)), "takes 64 a request", 413),
    "pixels in another order than the shape": (
        request(image(datatype="FP32", shape=[1, 3, 32, 32], data=[[[[0.5] * 3] * 32] * 32])),
        "its data are of shape [1, 32, 32, 3], not [1, 3, 32, 32]",
    ),
    "NaN": (request(image(datatype="FP32", shape=[1, 3, 32, 32], data=[float("nan")] * 3072)), "not finite", 422),
}


@pytest.mark.parametrize("name", [*PICTURES, *BODIES])
def test_pictures_and_bodies(server, name):
    path, rows = ("/classify", PICTURES) if name in PICTURES else (INFER, BODIES)
    body, reason, expected = (*rows[name], 400)[:3]
    status, answer = server.ask("POST", path, body)
    assert status == expected and reason in answer["error"]


@pytest.mark.parametrize(
    ("method", "path", "headers", "status", "reason"),
    [
        ("POST", "/v2/models/x/infer", {}, 404, "the model is at /v2/models/digits"),
        ("POST", "/classify/more", {}, 404, "no such address"),
        ("POST", "//classify", {}, 404, "no such address"),
        ("GET", "/%00", {}, 404, "no such address"),
        ("GET", "/../x", {}, 404, "no such address"),
        ("GET", "/classify/", {"Host": "other"}, 404, "no such address"),
        ("GET", "/classify", {}, 405, "POST the image file itself: curl --data-binary @photo.jpg"),
        ("DELETE", "/v2/models/digits", {}, 405, "only GET, HEAD is allowed"),
        ("POST", "/classify?top_k=x", {}, 400, "top_k must be a number"),
        ("POST", "/classify?top_k=0", {}, 400, "top_k must be a whole number"),
        ("POST", "/classify?abstain=nan", {}, 400, "abstain must be from 0 to 1"),
        ("POST", "/classify?weights=1", {}, 400, "unknown parameter weights"),
        ("POST", "/v2/models/digits/versions/7/infer", {}, 404, "version 7 is not served"),
        ("POST", INFER, {"Content-Encoding": "gzip"}, 415, "without compression"),
        ("POST", INFER, {"Inference-Header-Content-Length": "2"}, 400, "no binary tensors"),
    ],
)
def test_addresses_and_headers(server, method, path, headers, status, reason):
    found, answer = server.ask(method, path, b"{}" if method == "POST" else None, **headers)
    assert found == status and reason in answer["error"]


def talk(server, data):
    """Sends bytes over a bare socket; what comes back until the server closes."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=SILENCE) as client:
        with suppress(OSError):  # the server has heard enough
            client.sendall(data)
        found = b""
        with suppress(ConnectionResetError):
            while data := client.recv(1 << 16):
                found += data
    return found


def chunks(size, count):
    return (b"%x\r\n" % size + b"x" * size + b"\r\n") * count


SENT = {  # the bytes that a client sends, and the status
    "a body that is announced too large": (POST + b"content-length: 5000000000\r\n\r\n", 413),
    "a body that is sent although it is too large": (POST + b"content-length: 8000000\r\n\r\n" + bytes(8_000_000), 413),
    "chunks without an end": (CHUNKED + chunks(0x10000, 100), 413),
    "many small chunks": (CHUNKED + chunks(1, 2000) + b"0\r\n\r\n", 400),
    "chunks that are no picture": (CHUNKED + chunks(200, 2000) + b"0\r\n\r\n", 415),
    "many headers": (b"GET /v2 HTTP/1.1\r\nconnection: close\r\n" + b"a: b\r\n" * 200 + b"\r\n", 400),
    "zeros": (bytes(1000), 400),
    "TLS": (b"\x16\x03\x01\x02\x00\x01\x00", 400),
    "HTTP/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
}


@pytest.mark.parametrize("what", SENT)
def test_bytes_on_a_bare_socket(server, what):
    data, status = SENT[what]
    found = talk(server, data)
    assert found.startswith(b"HTTP/1.1 %d" % status) and (status != 413 or b"above 2 MB" in found)


def test_many_requests_at_once(server):
    """Few are answered in their order; of many, at least the connection ends."""
    one = b"GET /v2/health/live HTTP/1.1\r\nhost: x\r\n\r\n"
    few = talk(server, one * 9 + one.replace(b"host", b"connection: close\r\nhost"))
    assert few.count(b"HTTP/1.1 200") == 10
    assert talk(server, one * 500).count(b"HTTP/1.1 200") < 500


@pytest.mark.parametrize("values", [b"[" + b"0," * 100_001 + b"0]", b"[" * 100_002, b"[" + b"{}" * 1001 + b"]"])
def test_json_of_many_values_is_not_read(values):
    with pytest.raises(Refused, match="send pictures as base64") as refused:
        parse_json(values)
    assert refused.value.status == 413


LONG = "x" * 30_000
NOT_PIXELS = {  # data that do not make a tensor of 3,072 numbers, a part of the reason
    "text": ([LONG] + [""] * 3071, "expected numbers"),  # numpy's array of it takes 369 MB
    "nested text": ([[[LONG, ""]]] * 1536, "expected numbers"),
    "null": ([None] * 3072, "expected numbers"),
    "a number and a list": ([[1], 2], "expected numbers"),
    "uneven": ([[1], [2, 3]], "do not make"),
    "empty": ([[[]]], "whole numbers"),
    "one more": ([0] * 3073, "more data than the 3072 numbers"),
    "many empty lists": ([[]] * 100_000, "more data than the 3072 numbers"),
    "ten images": ([[0] * 3072] * 10, "more data than the 3072 numbers"),
}


@pytest.mark.parametrize("name", NOT_PIXELS)
def test_data_that_are_not_the_shapes_numbers_take_no_memory(name):
    data, reason = NOT_PIXELS[name]
    tracemalloc.start()
    try:
        with pytest.raises(Refused, match=reason) as refused:
            parse_tensor(data, "UINT8", [1, 32, 32, 3], "here")
        assert refused.value.status == 400 and tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


def test_connections_without_a_whole_head_end():
    """Also those on which a request was answered; as many as may be open must not be all there are for ever."""

    async def app(scope, receive, send):
        await Response("answer")(scope, receive, send)

    config = {"lifespan": "off", "log_config": None, "timeout_keep_alive": 1, "timeout_graceful_shutdown": 1}
    server = uvicorn.Server(uvicorn.Config(app, http=Bounded, **config))
    with listen("127.0.0.1", 0) as listener, ExitStack() as clients:
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        one = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"
        for begun in (b"", b"G", one[:-3], one, one + b"GET /", one * 2 + one[:-3]):
            client = clients.enter_context(socket.create_connection(listener.getsockname(), timeout=SILENCE))
            client.sendall(begun)
            found = b""
            while data := client.recv(1 << 16):
                found += data
            assert found.count(b"HTTP/1.1 200") == begun.count(b"\r\n\r\n")
        server.should_exit = True
        thread.join()


def test_clients_that_go_away(server, pictures):
    data = pictures[0][1]
    for size in (10, len(data)):
        for _ in range(20):
            with socket.create_connection(("127.0.0.1", server.port)) as client:
                client.sendall(POST + b"content-length: %d\r\n\r\n" % len(data) + data[:size])


@pytest.mark.parametrize(
    ("begun", "before", "after"),
    [(POST, b"X: ", b"\r\n"), (POST + b"X: ", b"", b""), (CHUNKED + b"1;", b"", b"")],
    ids=["fields", "a field", "a chunk's extension"],
)
def test_a_head_without_an_end_is_not_kept(server, begun, before, after):
    """A client that goes on for ever is let go after 64 kB."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=SILENCE) as client:
        client.sendall(begun)
        sent = 0
        with pytest.raises(OSError):
            while sent < 64 << 20:
                client.sendall(before + b"a" * 1000 + after)
                sent += 1000
        assert sent < 16 << 20, "what lies in the system's buffers, at most"
