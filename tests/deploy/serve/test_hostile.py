"""Whatever strangers send is answered with a status, and the server goes on."""

import json
import socket
import struct
import time
import zlib

import numpy as np
import pytest

from must.deploy.serve.http import parse
from must.deploy.serve.protocol import Refused
from tests.deploy.serve.server import SILENCE
from tests.zoo import chunk, encoded, picture

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


def png(width, height, rows):
    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


JPEG = encoded(picture(), "JPEG")
PICTURES = {
    "nothing": (b"", 415),
    "text": (b"hello", 415),
    "another format": (encoded(picture(), "BMP"), 415),
    "a script": (b"%!PS-Adobe-3.0 EPSF-3.0\n", 415),
    "half a jpeg": (JPEG[:200], 422),
    "only a jpeg's first bytes": (b"\xff\xd8\xff", 422),
    "a bomb": (png(100_000, 100_000, b"\0" * 1000), 422),
    "more pixels than allowed": (png(7000, 7000, b"\0" * 7001 * 7000), 422),
    "a thread": (png(1, 30_000, b"\0\0" * 30_000), 422),
    "no pixels": (png(0, 10, b""), 422),
}


@pytest.mark.parametrize("name", PICTURES)
def test_pictures(server, name):
    data, expected = PICTURES[name]
    status, answer = server.ask("POST", "/classify", data)
    assert status == expected and answer["error"]


def image(**values):
    return {"name": "image", "datatype": "BYTES", "shape": [1], "data": ["AAAA"]} | values


BODIES = {
    "no JSON": b"{",
    "a list": b"[]",
    "deep": b"[" * 100_000,
    "no inputs": json.dumps({}).encode(),
    "inputs of another kind": json.dumps({"inputs": {"image": 1}}).encode(),
    "two inputs": json.dumps({"inputs": [image(), image()]}).encode(),
    "another name": json.dumps({"inputs": [image(name="picture")]}).encode(),
    "another type": json.dumps({"inputs": [image(datatype="FP16")]}).encode(),
    "a type of another kind": json.dumps({"inputs": [image(datatype=["BYTES"])]}).encode(),
    "no base64": json.dumps({"inputs": [image(data=["*"])]}).encode(),
    "no text": json.dumps({"inputs": [image(data=[7])]}).encode(),
    "fewer files than the shape says": json.dumps({"inputs": [image(shape=[2])]}).encode(),
    "a negative shape": json.dumps({"inputs": [image(shape=[-1])]}).encode(),
    "an endless shape": json.dumps({"inputs": [image(shape=[1] * 50)]}).encode(),
    "a huge shape": json.dumps({"inputs": [image(datatype="UINT8", shape=[1, 2**30, 2**30, 2**30])]}).encode(),
    "true for a shape": json.dumps({"inputs": [image(shape=[True])]}).encode(),
    "too large for a byte": json.dumps(
        {"inputs": [image(datatype="UINT8", shape=[1, 32, 32, 3], data=[300] * 3072)]}
    ).encode(),
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


def talk(server, *parts, pause=0.0, wait=SILENCE):
    """Sends parts over a bare socket; what comes back until the server closes, and the seconds that took."""
    begun = time.monotonic()
    with socket.create_connection(("127.0.0.1", server.port), timeout=wait) as client:
        for part in parts:
            try:
                client.sendall(part)
            except OSError:  # the server has heard enough
                break
            time.sleep(pause)
        found = b""
        try:
            while data := client.recv(1 << 16):
                found += data
        except ConnectionResetError:
            pass
    return found, time.monotonic() - begun


def test_a_body_that_is_announced_too_large_is_refused_at_once(server):
    found, _ = talk(server, b"POST /classify HTTP/1.1\r\nhost: x\r\ncontent-length: 5000000000\r\n\r\n")
    assert found.startswith(b"HTTP/1.1 413") and b"above 2 MB" in found


def test_a_client_that_sends_it_all_the_same_sees_why(server):
    head = b"POST /classify HTTP/1.1\r\nhost: x\r\ncontent-length: 8000000\r\n\r\n"
    found, _ = talk(server, head, b"x" * 8_000_000)
    assert found.startswith(b"HTTP/1.1 413")


def test_a_body_without_an_end_is_refused_when_it_is_too_large(server):
    chunk = b"10000\r\n" + b"x" * 0x10000 + b"\r\n"
    found, _ = talk(server, b"POST /classify HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n", *[chunk] * 100)
    assert found.startswith(b"HTTP/1.1 413")


def test_many_headers(server):
    found, _ = talk(server, b"GET /v2 HTTP/1.1\r\nconnection: close\r\n" + b"a: b\r\n" * 200 + b"\r\n")
    assert found.startswith(b"HTTP/1.1 400")


def test_many_requests_at_once(server):
    """Few are answered in their order; of many, at least the connection ends."""
    one = b"GET /v2/health/live HTTP/1.1\r\nhost: x\r\n\r\n"
    few, _ = talk(server, one * 9 + one.replace(b"host", b"connection: close\r\nhost"))
    assert few.count(b"HTTP/1.1 200") == 10
    many, _ = talk(server, one * 500)
    assert many.count(b"HTTP/1.1 200") < 500


@pytest.mark.parametrize(("size", "status"), [(1, b"400"), (200, b"415")])
def test_a_body_in_chunks(server, size, status):
    chunk = b"%x\r\n" % size + b"x" * size + b"\r\n"
    head = b"POST /classify HTTP/1.1\r\nhost: x\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n"
    found, _ = talk(server, head + chunk * 2000 + b"0\r\n\r\n")
    assert found.startswith(b"HTTP/1.1 " + status)


def test_a_picture_of_many_parts(server):
    status, answer = server.ask("POST", "/classify", JPEG[:2] + b"\xff\xfe\0\2" * 4000 + JPEG[2:])
    assert status == 422 and "more than 3000 parts" in answer["error"]


@pytest.mark.parametrize("values", [b"[" + b"0," * 100_001 + b"0]", b"[" * 100_002, b"[" + b"{}" * 1001 + b"]"])
def test_json_of_many_values_is_not_read(values):
    with pytest.raises(Refused) as refused:
        parse(memoryview(values))
    assert refused.value.status == 413 and "as binary data" in refused.value.reason


def test_a_slow_body(impatient):
    found, seconds = talk(impatient, b"POST /classify HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n\xff\xd8")
    assert found.startswith(b"HTTP/1.1 408") and seconds >= 1


@pytest.mark.parametrize("data", [b"\0" * 1000, b"\x16\x03\x01\x02\x00\x01\x00", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"])
def test_what_is_no_http(server, data):
    found, _ = talk(server, data)
    assert found.startswith(b"HTTP/1.1 400")


def test_clients_that_go_away(server, pictures):
    data = pictures[0][1]
    for size in (10, len(data)):
        for _ in range(20):
            with socket.create_connection(("127.0.0.1", server.port)) as client:
                client.sendall(
                    b"POST /classify HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % len(data) + data[:size]
                )


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
