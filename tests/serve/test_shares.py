"""Neighbours stay served: what is costly waits, what is silent makes room, health always answers."""

import json
import socket
import struct
import threading
import time
from functools import partial

import pytest

from must.deploy.serve.turns import Share, Turns
from tests.serve.server import SILENCE, running

INFER = "/v2/models/digits/infer"


def order_of(turns, puts):
    """The names of jobs in the order in which one thread does them; it is held until all of them wait."""
    done, held, last = [], threading.Event(), threading.Event()
    turns.put(Share(), 0.001, 0, lambda: held.wait(SILENCE))
    for share, megapixels, name in puts:
        turns.put(share, megapixels, 0, partial(done.append, name))
    turns.put(Share(), 1e9, 0, last.set)
    held.set()
    assert last.wait(SILENCE)
    turns.close()
    return done


def test_a_photo_does_not_wait_for_anothers_sixty_four():
    many, one = Share(), Share()
    puts = [(many, 40, f"many {number}") for number in range(64)] + [(one, 12, "one")]
    assert order_of(Turns(1, 10**9), puts).index("one") == 0


def test_a_large_picture_has_its_turn_among_many_small_requests():
    large = Share()
    puts = [(large, 40, "large")] + [(Share(), 1, f"small {number}") for number in range(100)]
    turns, found = Turns(1, 10**9), []
    held, done = threading.Event(), threading.Event()
    turns.put(Share(), 0.001, 0, lambda: held.wait(SILENCE))

    def arrive():
        """The next small request comes when the one before it has been done, for ever."""
        found.append("small")
        if "large" not in found:
            turns.put(Share(), 1, 0, arrive)

    for share, megapixels, name in puts[:1]:
        turns.put(share, megapixels, 0, lambda name=name: (found.append(name), done.set()))
    turns.put(Share(), 1, 0, arrive)
    held.set()
    assert done.wait(SILENCE) and found.index("large") <= 41
    turns.close()


def test_pictures_decoded_at_a_time_stay_below_the_memory_and_one_thread_stays_free():
    turns = Turns(4, 100)
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
        turns.put(Share(), 1, size, partial(job, size))
    assert all(done.acquire(timeout=SILENCE) for _ in range(35)) and most[0] <= 250
    blocked = threading.Event()
    for _ in range(8):
        turns.put(Share(), 40, 0, lambda: (blocked.wait(SILENCE), done.release()))
    turns.put(Share(), 1, 0, done.release)
    assert done.acquire(timeout=SILENCE), "a small picture, while large ones hold the decoders"
    blocked.set()
    assert all(done.acquire(timeout=SILENCE) for _ in range(8))
    turns.close()


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
