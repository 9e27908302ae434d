"""Neighbours stay served: what is costly waits, what is silent makes room, health always answers."""

import json
import socket
import struct
import threading
import time
from functools import partial

import pytest

from must.deploy.serve.work import Decoders
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
            try:
                client.sendall(begun)
            except OSError:  # has made room
                continue
        for method, path, body in (
            ("GET", "/v2/health/live", None),
            ("GET", "/metrics", None),
            ("POST", "/classify", pictures[0][1]),
        ):
            assert small.ask(method, path, body)[0] == 200
    finally:
        for client in held:
            client.close()


def webp(side):
    """1 picture of 90 bytes: an animation of one frame on a large canvas."""
    from benchmarks.image_cost import webp_animated

    return webp_animated(side, side)


def test_a_request_of_sixty_four_costly_pictures_is_refused_by_its_headers(small, pictures):
    blob = b"".join(struct.pack("<I", len(data)) + data for data in [webp(6000)] * 64)
    tensor = {"name": "image", "datatype": "BYTES", "shape": [64], "parameters": {"binary_data_size": len(blob)}}
    header = json.dumps({"inputs": [tensor]}).encode()
    status, answer = small.ask("POST", INFER, header + blob, Inference_Header_Content_Length=str(len(header)))
    assert status == 413 and "this server takes 64 a request" in answer["error"]
    assert "must_megapixels_waiting 0.0" in small.ask("GET", "/metrics")[1].decode()
    assert small.ask("POST", "/classify", webp(6400))[0] == 422
