"""Neighbours stay served: what is costly waits, what is silent makes room, health always answers; what a request holds
whose client does not read the answer, or is gone: nothing."""

import asyncio
import json
import socket
import struct
import threading
import time
from contextlib import suppress
from functools import partial
from types import SimpleNamespace

import pytest

from benchmarks.image_cost import webp_animated
from must.deploy.serve.http import App, ClientGone, cancel_on_disconnect
from must.deploy.serve.metrics import Metrics
from must.deploy.serve.protocol import Refused
from must.deploy.serve.work import Decoders, Work
from tests.deploy.serve.server import SILENCE, running

INFER = "/v2/models/digits/infer"


def test_pictures_decoded_at_a_time_stay_below_the_memory_and_one_alone_may_take_more():
    decoders = Decoders(4, 100)
    lock, now, most, done = threading.Lock(), [0], [0], threading.Semaphore(0)

    def job(size):
        with lock:
            now[0] += size
            most[0] = max(most[0], now[0])
        time.sleep(0.001)
        with lock:
            now[0] -= size
        done.release()

    for size in [60, 60, 30, 30, 250, 60, 10] * 5:
        decoders.put(size, partial(job, size))
    assert all(done.acquire(timeout=SILENCE) for _ in range(35)) and most[0] == 250
    decoders.close()


def test_cheap_pictures_pass_costly_ones_that_came_just_before():
    decoders, order, begun, done = Decoders(1, 100), [], threading.Event(), threading.Event()
    decoders.put(0, partial(begun.wait, SILENCE))  # while the others come
    for name, seconds in (("large", 50), ("many, last", 90), ("small", 0), ("many, first", 10)):
        decoders.put(1, partial(order.append, name), seconds)
    decoders.put(0, done.set, 1000)
    begun.set()
    assert done.wait(SILENCE) and order == ["small", "many, first", "large", "many, last"]
    decoders.close()


@pytest.fixture(scope="module")
def small(exported):
    with running("--model", exported[1], "--name", "digits") as it:
        yield it


BEGUN = [b"", b"POST /classify HTTP/1.1\r\nhost:", b"POST /classify HTTP/1.1\r\ncontent-length: 9\r\n\r\n\xff"]


@pytest.mark.parametrize("begun", BEGUN, ids=["nothing", "half a head", "half a body"])
def test_health_and_pictures_are_answered_whatever_the_connections_do(small, pictures, begun):
    held = [socket.create_connection(("127.0.0.1", small.port)) for _ in range(60)]
    try:
        for client in held:
            with suppress(OSError):  # it has made room
                client.sendall(begun)
        assert small.ask("GET", "/v2/health/live")[0] == small.ask("GET", "/metrics")[0] == 200
        assert small.ask("POST", "/classify", pictures[0][1])[0] == 200
    finally:
        for client in held:
            client.close()


def test_a_request_of_sixty_four_costly_pictures_is_refused_by_its_headers(small, pictures):
    """Animations of one frame on a large canvas, of 90 bytes each."""
    data = webp_animated(6000, 6000)
    blob = (struct.pack("<I", len(data)) + data) * 64
    tensor = {"name": "image", "datatype": "BYTES", "shape": [64], "parameters": {"binary_data_size": len(blob)}}
    header = json.dumps({"inputs": [tensor]}).encode()
    status, answer = small.ask("POST", INFER, header + blob, Inference_Header_Content_Length=str(len(header)))
    assert status == 413 and "this server takes 64 a request" in answer["error"]
    assert "must_megapixels_waiting 0.0" in small.ask("GET", "/metrics")[1].decode()
    assert small.ask("POST", "/classify", webp_animated(6400, 6400))[0] == 422


SCOPE = {"type": "http", "method": "POST", "path": INFER, "query_string": b"", "headers": []}
CONFIG = SimpleNamespace(decoders=1, decode_memory=1, max_body=1, max_memory=1, patience=60, max_images=1)


def test_a_requests_memory_is_let_go_before_its_answer_is_sent():
    seen = []

    async def exchange():
        def borrow():
            seen.append(("worked on", work.held_bytes))
            raise Refused(503, "no model is loaded yet")

        async def receive():
            return {"type": "http.request", "body": b"[" * 1000, "more_body": False}

        async def send(message):
            seen.append((message["type"], work.held_bytes))

        work = Work(CONFIG, SimpleNamespace(borrow=borrow), Metrics())
        await App(work, "digits")(SCOPE, receive, send)
        work.decoders.close()

    asyncio.run(exchange())
    assert seen == [("worked on", 1000), ("http.response.start", 0), ("http.response.body", 0)]


def test_a_client_that_has_left_is_not_worked_for():
    given_up = []

    async def exchange():
        async def receive():
            return {"type": "http.disconnect"}

        async def answer():
            try:
                await asyncio.sleep(60)
            finally:
                given_up.append(True)

        with pytest.raises(ClientGone):
            await cancel_on_disconnect(answer(), receive)
        assert await cancel_on_disconnect(asyncio.sleep(0, 7), asyncio.Event().wait) == 7

    asyncio.run(exchange())
    assert given_up
