"""Whatever clients send is answered with a status, and the server goes on."""

import json
import socket
from contextlib import ExitStack, suppress

import pytest

from tests.common import until
from tests.serving.server import SILENCE
from tests.zoo import bomb, encoded, picture

INFER = "/v2/models/digits/infer"
BY_CURL = encoded(picture(), "JPEG").translate(None, b"\0\r\n")
POST = b"POST /classify HTTP/1.1\r\nhost: x\r\n"
IMAGE = {"name": "image", "datatype": "BYTES", "shape": [1], "data": ["AAAA"]}

infer = lambda **values: json.dumps({"inputs": [IMAGE | values]}).encode()  # noqa: E731

REQUESTS = {  # path, body, part of the reason, status
    "another format": ("/classify", encoded(picture(), "BMP"), "not a picture of a known format", 415),
    "a photo by curl -d": ("/classify", BY_CURL, "itself: curl --data-binary", 422),
    "half a jpeg": ("/classify", encoded(picture(), "JPEG")[:200], "the picture cannot be read: ", 422),
    "more pixels than allowed": ("/classify", bomb(7000, 7000), "7000x7000 is more than 40000000 pixels", 422),
    "a large body": ("/classify", bytes(3_000_000), "above 2 MB", 413),
    "an address": ("/classify/more", b"", "no such address", 404),
    "deep JSON": (INFER, b"[" * 100_000, "the body is no JSON", 400),
    "many values": (INFER, b"[" + b"0," * 200_001 + b"0]", "send pictures as base64", 413),
    "not base64": (INFER, infer(data=["*"]), "a valid base64 string", 400),
    "a huge shape": (INFER, infer(datatype="UINT8", shape=[1, 2**30, 2**30, 2**30]), "[N, 32, 32, 3]", 400),
    "NaN": (INFER, infer(datatype="FP32", shape=[1, 3, 32, 32], data=[float("nan")] * 3072), "not finite", 422),
    "more images than allowed": (INFER, infer(shape=[17], data=["AAAA"] * 17), "16 a request", 413),
}
ENDLESS = POST + b"X: " + b"a" * 12_000_000  # a head without an end


@pytest.mark.parametrize("name", REQUESTS)
def test_wrong_requests_are_refused_with_a_reason(server, name):
    path, body, reason, expected = REQUESTS[name]
    status, answer = server.ask("POST", path, body)
    assert status == expected and reason in answer["error"]


def test_others_are_served_beside_silent_slow_and_endless_clients(server, pictures):
    with ExitStack() as held:
        for begun in (b"", POST, POST + b"content-length: 9\r\n\r\n\xff") * 25:
            held.enter_context(socket.create_connection(("127.0.0.1", server.port))).sendall(begun)
        client = held.enter_context(socket.create_connection(("127.0.0.1", server.port), timeout=SILENCE))
        with suppress(OSError):  # the server has heard enough
            client.sendall(ENDLESS)
        with suppress(ConnectionResetError):
            assert not client.recv(12), "the connection is closed"
        assert server.ask("GET", "/v2/health/live")[0] == 200
        assert server.ask("POST", "/classify", pictures[0][1])[0] == 200
    until(lambda: b"must_body_bytes 0.0" in server.ask("GET", "/metrics")[1], server.log)
    assert b"must_images_waiting 0.0" in server.ask("GET", "/metrics")[1] and not server.said("Traceback")
