"""Whatever strangers send is answered with a status, and the server goes on."""

import json
import socket
import time
import zlib
from contextlib import suppress

import numpy as np
import pytest

from must.deploy.serve.http import parse
from must.deploy.serve.protocol import Refused
from tests.deploy.serve.server import SILENCE, running
from tests.zoo import bomb, encoded, picture

INFER = "/v2/models/digits/infer"


@pytest.fixture(autouse=True)
def alive(server, pictures):
    """After each of these tests the server answers, and holds nothing of what was sent."""
    yield
    assert server.process.poll() is None, server.log
    assert server.ask("POST", "/classify", pictures[0][1])[0] == 200
    until = time.monotonic() + SILENCE
    while "must_body_bytes 0.0" not in (text := server.ask("GET", "/metrics")[1].decode()):
        assert time.monotonic() < until, text
        time.sleep(0.05)
    assert "must_images_waiting 0.0" in text
    assert not server.said("Traceback"), server.log


JPEG = encoded(picture(), "JPEG")
PICTURES = {
    "nothing": (b"", 415, "not a picture of a known format"),
    "another format": (encoded(picture(), "BMP"), 415, "not a picture of a known format"),
    "half a jpeg": (JPEG[:200], 422, "the picture cannot be read: "),
    "only a jpeg's first bytes": (b"\xff\xd8\xff", 422, "0x0 has no pixels"),
    "many parts": (JPEG[:2] + b"\xff\xfe\0\2" * 4000 + JPEG[2:], 422, "more than 3000 parts"),
    "more pixels than allowed": (bomb(7000, 7000), 422, "7000x7000 is more than 40000000 pixels"),
    "a thread": (bomb(1, 30_000), 422, "1x30000 is thinner than 1 to 200"),
}


@pytest.mark.parametrize("name", PICTURES)
def test_pictures(server, name):
    data, expected, message = PICTURES[name]
    status, answer = server.ask("POST", "/classify", data)
    assert status == expected and message in answer["error"]


def image(**values):
    return {"name": "image", "datatype": "BYTES", "shape": [1], "data": ["AAAA"]} | values


PIXELS = {"datatype": "UINT8", "shape": [1, 32, 32, 3]}
BODIES = {
    "no JSON": b"{",
    "a list": b"[]",
    "deep": b"[" * 100_000,
    "no inputs": json.dumps({}).encode(),
    "inputs of another kind": json.dumps({"inputs": {"image": 1}}).encode(),
    "two inputs": json.dumps({"inputs": [image(), image()]}).encode(),
    "another name": json.dumps({"inputs": [image(name="picture")]}).encode(),
    "another type": json.dumps({"inputs": [image(datatype="FP16")]}).encode(),
    "no base64": json.dumps({"inputs": [image(data=["*"])]}).encode(),
    "no text": json.dumps({"inputs": [image(data=[7])]}).encode(),
    "fewer files than the shape says": json.dumps({"inputs": [image(shape=[2])]}).encode(),
    "a negative shape": json.dumps({"inputs": [image(shape=[-1])]}).encode(),
    "an endless shape": json.dumps({"inputs": [image(shape=[1] * 50)]}).encode(),
    "a huge shape": json.dumps({"inputs": [image(datatype="UINT8", shape=[1, 2**30, 2**30, 2**30])]}).encode(),
    "true for a shape": json.dumps({"inputs": [image(shape=[True])]}).encode(),
    "too large for a byte": json.dumps({"inputs": [image(**PIXELS, data=[300] * 3072)]}).encode(),
    "bytes that did not come": json.dumps({"inputs": [image(parameters={"binary_data_size": 10})]}).encode(),
    "parameters of another kind": json.dumps({"inputs": [image()], "parameters": 3}).encode(),
    "no such output": json.dumps({"inputs": [image()], "outputs": [{"name": "weights"}]}).encode(),
    "an output twice": json.dumps({"inputs": [image()], "outputs": [{"name": "class"}] * 2}).encode(),
    "a threshold above 1": json.dumps({"inputs": [image()], "parameters": {"abstain": 1e9}}).encode(),
    "no class": json.dumps({"inputs": [image()], "parameters": {"top_k": 0}}).encode(),
}


@pytest.mark.parametrize("name", BODIES)
def test_bodies(server, name):
    status, answer = server.ask("POST", INFER, BODIES[name])
    assert status == 400 and answer["error"]


def test_more_images_than_allowed(server):
    body = json.dumps({"inputs": [image(shape=[17], data=["AAAA"] * 17)]})
    status, answer = server.ask("POST", INFER, body)
    assert status == 413 and "16 a request" in answer["error"]


@pytest.mark.parametrize("length", ["-1", "x", "99999999999999999999", "5"])
def test_a_wrong_length_of_the_json(server, length):
    status, _ = server.ask("POST", INFER, b"{}", Inference_Header_Content_Length=length)
    assert status == 400


def test_not_a_number_is_no_answer(server):
    floats = np.full((1, 3, 32, 32), np.nan, np.float32).tobytes()
    tensor = image(datatype="FP32", shape=[1, 3, 32, 32], parameters={"binary_data_size": len(floats)})
    del tensor["data"]
    header = json.dumps({"inputs": [tensor]}).encode()
    status, answer = server.ask("POST", INFER, header + floats, Inference_Header_Content_Length=str(len(header)))
    assert status == 422 and "not finite" in answer["error"]


@pytest.mark.parametrize(
    "path", ["/", "/v2/", "/classify/more", "/v2/models//infer", "/v2/models/x/infer", "/%00", "/../x"]
)
def test_addresses(server, path):
    assert server.ask("POST", path, b"x")[0] == 404


@pytest.mark.parametrize("query", ["top_k=x", "top_k=0", "abstain=nan", "abstain=2", "weights=1", "embedding=1"])
def test_queries(server, query, pictures):
    status, answer = server.ask("POST", f"/classify?{query}", pictures[0][1])
    assert status == 400 and answer["error"]


def test_methods(server):
    assert server.ask("DELETE", "/v2/models/digits")[0] == 405
    assert server.ask("GET", "/classify")[0] == 404


def test_compressed_bodies_are_refused(server):
    assert server.ask("POST", INFER, zlib.compress(b"{}"), Content_Encoding="gzip")[0] == 415


def talk(server, data):
    """Sends bytes over a bare socket; what comes back until the server closes, and the seconds that took."""
    begun = time.monotonic()
    with socket.create_connection(("127.0.0.1", server.port), timeout=SILENCE) as client:
        with suppress(OSError):  # the server has heard enough
            client.sendall(data)
        found = b""
        with suppress(ConnectionResetError):
            while data := client.recv(1 << 16):
                found += data
    return found, time.monotonic() - begun


POST = b"POST /classify HTTP/1.1\r\nhost: x\r\n"
CHUNKED = POST + b"connection: close\r\ntransfer-encoding: chunked\r\n\r\n"


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
    found, _ = talk(server, data)
    assert found.startswith(b"HTTP/1.1 %d" % status) and (status != 413 or b"above 2 MB" in found)


def test_many_requests_at_once(server):
    """Few are answered in their order; of many, at least the connection ends."""
    one = b"GET /v2/health/live HTTP/1.1\r\nhost: x\r\n\r\n"
    few, _ = talk(server, one * 9 + one.replace(b"host", b"connection: close\r\nhost"))
    assert few.count(b"HTTP/1.1 200") == 10
    many, _ = talk(server, one * 500)
    assert many.count(b"HTTP/1.1 200") < 500


@pytest.mark.parametrize("values", [b"[" + b"0," * 100_001 + b"0]", b"[" * 100_002, b"[" + b"{}" * 1001 + b"]"])
def test_json_of_many_values_is_not_read(values):
    with pytest.raises(Refused) as refused:
        parse(memoryview(values))
    assert refused.value.status == 413 and "as binary data" in refused.value.reason


def test_a_slow_body(exported):
    with running("--model", exported[1], "--patience", 1) as impatient:
        found, seconds = talk(impatient, POST + b"content-length: 100\r\n\r\n\xff\xd8")
    assert found.startswith(b"HTTP/1.1 408") and seconds >= 1


def test_clients_that_go_away(server, pictures):
    data = pictures[0][1]
    for size in (10, len(data)):
        for _ in range(20):
            with socket.create_connection(("127.0.0.1", server.port)) as client:
                client.sendall(POST + b"content-length: %d\r\n\r\n" % len(data) + data[:size])


def test_a_head_without_an_end_is_not_kept(server):
    """A client that sends fields for ever is let go after 64 kB of them."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=SILENCE) as client:
        client.sendall(b"GET /v2/health/live HTTP/1.1\r\nHost: here\r\n")
        sent = 0
        with pytest.raises(OSError):
            while sent < 64 << 20:
                client.sendall(b"X-%d: " % sent + b"a" * 1000 + b"\r\n")
                sent += 1000
        assert sent < 16 << 20, "what lies in the system's buffers, at most"
