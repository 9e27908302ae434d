"""Neighbours stay served: costly requests wait, health always answers, and a refused request holds no memory."""

import asyncio
import socket
import threading
import time
from contextlib import ExitStack, suppress
from functools import partial
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
from starlette.requests import ClientDisconnect, Request

from must.config import ServeConfig
from must.deploy.serve import http
from must.deploy.serve.http import LARGE_JSON, Api, PendingRequest, cancel_on_disconnect
from must.deploy.serve.metrics import ServerMetrics
from must.deploy.serve.models import Decoders
from must.deploy.serve.protocol import Refused
from tests.deploy.serve.server import SILENCE

BEGUN = [b"", b"POST /classify HTTP/1.1\r\nhost:", b"POST /classify HTTP/1.1\r\ncontent-length: 9\r\n\r\n\xff"]
SCOPE = {"type": "http", "method": "POST", "path": "/classify", "query_string": b"", "headers": []}


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


def test_cheap_pictures_pass_costly_ones_that_came_just_before():
    decoders, order, begun, done = Decoders(1, 100), [], threading.Event(), threading.Event()
    decoders.put(0, partial(begun.wait, SILENCE))  # while the others come
    for name, delay in (("large", 500), ("many, last", 900), ("small", 0), ("many, first", 100)):
        decoders.put(1, partial(order.append, name), delay)
    decoders.put(0, done.set, 1000)
    begun.set()
    assert done.wait(SILENCE) and order == ["small", "many, first", "large", "many, last"]


def test_memory_is_divided_among_bodies_decoding_and_waiting():
    given = ServeConfig(model="none")
    assert (given.body_bytes, given.decoding_bytes, given.queue_pixels, given.request_pixels) == (250e6, 1e9, 250, 64)


def with_api(test):
    """Runs `await test(api)` with an Api of no model."""
    borrow = Mock(side_effect=Refused(503, "no model is loaded yet"))

    async def run():
        await test(Api(ServeConfig(model="none", decoders=1), SimpleNamespace(borrow=borrow), ServerMetrics()))

    asyncio.run(run())


@pytest.mark.parametrize(
    ("megapixels", "images", "stay"),
    [
        (0.2, 1, ["small", "new"]),  # the costliest one makes room
        (1, 2, ["large", "small"]),  # to refuse the large one would not make enough room: both stay
        (20, 1, ["large", "small"]),  # none is costlier
        (0.2, 5, ["large", "small"]),  # more than the queue holds
    ],
)
def test_a_full_queue_refuses_costlier_requests_or_the_new_one_but_not_both(megapixels, images, stay, monkeypatch):
    monkeypatch.setattr("must.deploy.serve.http.MOST_WAITING", 4)

    async def admit(api):
        names = {}
        for name, size, count in (("large", 10, 1), ("small", 0.3, 3), ("new", megapixels, images)):
            pending = PendingRequest(size, [api.loop.create_future() for _ in range(count)])
            names[pending] = name
            with suppress(Refused):
                api.admit(pending)
        assert [names[pending] for pending in api.requests] == stay
        assert api.waiting == sum(len(pending.futures) for pending in api.requests)
        assert api.megapixels == pytest.approx(sum(pending.megapixels for pending in api.requests))
        refused = [pending for pending in names if pending not in api.requests and names[pending] != "new"]
        errors = [future.exception() for pending in refused for future in pending.futures]
        assert all(isinstance(error, Refused) and error.status == 503 for error in errors)

    with_api(admit)


@pytest.mark.parametrize("begun", BEGUN, ids=["nothing", "half a head", "half a body"])
def test_health_and_pictures_are_answered_beside_silent_connections(server, pictures, begun):
    with ExitStack() as held:
        for _ in range(60):
            held.enter_context(socket.create_connection(("127.0.0.1", server.port))).sendall(begun)
        assert server.ask("GET", "/v2/health/live")[0] == server.ask("GET", "/metrics")[0] == 200
        assert server.ask("POST", "/classify", pictures[0][1])[0] == 200


def test_a_requests_memory_is_released_before_its_answer_is_sent():
    seen = []

    async def exchange(api):
        async def receive():
            return {"type": "http.request", "body": b"[" * 1000, "more_body": False}

        async def send(message):
            seen.append((message["type"], api.held_bytes))

        async def infer(request, body):
            seen.append(("handled", api.held_bytes))
            raise Refused(503, "no model is loaded yet")

        response = await api.answer(infer)(Request(SCOPE, receive))
        await response(SCOPE, receive, send)

    with_api(exchange)
    assert seen == [("handled", 1000), ("http.response.start", 0), ("http.response.body", 0)]


def test_a_client_that_sends_its_body_slowly_is_ended(monkeypatch):
    monkeypatch.setattr(http, "CLIENT_TIMEOUT", 0.05)

    async def exchange(api):
        parts = iter([b"\xff\xd8"])

        async def receive():
            for part in parts:
                return {"type": "http.request", "body": part, "more_body": True}
            await asyncio.sleep(SILENCE)

        response = await api.answer(None)(Request(SCOPE, receive))
        assert (response.status_code, response.headers["connection"], api.held_bytes) == (408, "close", 0)

    with_api(exchange)


def test_work_for_a_client_that_has_left_is_cancelled():
    async def exchange():
        gone, working = asyncio.Event(), asyncio.Event()

        async def receive():
            await working.wait()
            return {"type": "http.disconnect"}

        async def answer():
            try:
                working.set()
                await asyncio.sleep(SILENCE)
            finally:
                gone.set()

        with pytest.raises(ClientDisconnect):
            await cancel_on_disconnect(answer(), receive)
        assert gone.is_set() and await cancel_on_disconnect(asyncio.sleep(0, 7), asyncio.Event().wait) == 7

    asyncio.run(exchange())


def test_large_json_is_parsed_one_at_a_time_beside_the_event_loop_and_small_json_does_not_wait(monkeypatch):
    inside, most, threads = 0, 0, set()
    classifier = SimpleNamespace(preprocess=SimpleNamespace(size=32), takes_pixels=False)
    served = SimpleNamespace(classifier=classifier, max_pixels=10**6)
    small, large = (b'{"inputs": []}' + b" " * size for size in (100, LARGE_JSON))

    def parse_slowly(*_):
        nonlocal inside, most
        threads.add(threading.current_thread())
        inside += 1
        most = max(most, inside)
        time.sleep(0.01)
        inside -= 1

    async def parse_all(api):
        monkeypatch.setattr(http, "CLIENT_TIMEOUT", 0.05)
        async with api.large_json:
            with pytest.raises(Refused, match='"inputs" must be'):
                await api.parse(small, served)
            with pytest.raises(Refused, match="other large requests") as refused:
                await api.parse(large, served)
        assert refused.value.status == 503
        with pytest.raises(Refused, match='"inputs" must be'):
            await api.parse(large, served)
        monkeypatch.setattr(http, "CLIENT_TIMEOUT", SILENCE)
        monkeypatch.setattr(http, "parse_request", parse_slowly)
        await asyncio.gather(*[api.parse(large, served) for _ in range(5)])

    with_api(parse_all)
    assert most == 1 and threading.main_thread() not in threads
