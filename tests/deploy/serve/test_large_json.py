"""JSON that is small as bytes and large as objects."""

import asyncio
import json
import threading
import time
import tracemalloc
from types import SimpleNamespace

import numpy as np
import pytest

from must.deploy.serve import http
from must.deploy.serve.http import LARGE_JSON, App
from must.deploy.serve.protocol import Limits, Refused, from_json

SHAPE = [1, 32, 32, 3]


@pytest.mark.parametrize("datatype", ["UINT8", "FP32"])
@pytest.mark.parametrize("data", [["x" * 30_000] + [""] * 3071, [[["x" * 30_000, ""]]] * 1536], ids=["flat", "nested"])
def test_strings_are_refused_before_numpy_makes_room_for_the_longest(data, datatype):
    tracemalloc.start()
    try:
        with pytest.raises(Refused, match="expected numbers"):
            from_json(data, datatype, SHAPE, "here")
        assert tracemalloc.get_traced_memory()[1] < 1_000_000  # numpy's array takes 369 MB
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("data", [[0] * 3073, [[]] * 100_000, [[0] * 3072] * 10, [[[0] * 3000]] * 2])
def test_more_data_than_the_shape_says(data):
    with pytest.raises(Refused, match="more data than the 3072 numbers"):
        from_json(data, "UINT8", SHAPE, "here")


@pytest.mark.parametrize("data", [None, {}, "x", [None] * 3072, [[1], 2], [{}], [[1], [2, 3]], [], [[[]]]])
def test_no_numbers(data):
    with pytest.raises(Refused) as refused:
        from_json(data, "UINT8", SHAPE, "here")
    assert refused.value.status == 400


@pytest.mark.parametrize("datatype", ["UINT8", "FP32"])
def test_numbers_flat_and_nested(datatype):
    values = np.arange(3072, dtype=np.uint8).reshape(SHAPE)
    for data in (values.tolist(), values.ravel().tolist(), values.reshape(64, 48).tolist()):
        found = from_json(data, datatype, SHAPE, "here")
        assert found.shape == tuple(SHAPE) and (found == values).all()


def test_no_memory_is_a_refusal(monkeypatch):
    def asarray(data):
        raise MemoryError

    monkeypatch.setattr(np, "asarray", asarray)
    with pytest.raises(Refused) as refused:
        from_json([0] * 3072, "UINT8", SHAPE, "here")
    assert refused.value.status == 503


def app_for(patience):
    work = SimpleNamespace(config=SimpleNamespace(patience=patience), limits=lambda served: Limits(16, 32, False))
    return App(work, "digits")


def body(size):
    return json.dumps({"inputs": []}).encode() + b" " * size


def test_large_bodies_are_read_one_at_a_time_beside_the_event_loop(monkeypatch):
    inside, most, threads = 0, 0, set()

    def parse_slowly(*_):
        nonlocal inside, most
        threads.add(threading.current_thread())
        inside += 1
        most = max(most, inside)
        time.sleep(0.01)
        inside -= 1

    async def read_all():
        app = app_for(patience=60)
        await asyncio.gather(*[app.read(body(LARGE_JSON), {}, None) for _ in range(5)])

    monkeypatch.setattr(http, "parse_request", parse_slowly)
    asyncio.run(read_all())
    assert most == 1 and threading.main_thread() not in threads


def test_small_bodies_do_not_wait_and_large_ones_not_for_ever():
    async def read_all():
        app = app_for(patience=0.05)
        async with app.large_json:
            with pytest.raises(Refused, match='"inputs" must be'):
                await app.read(body(100), {}, None)
            with pytest.raises(Refused, match="other large requests") as refused:
                await app.read(body(LARGE_JSON), {}, None)
        assert refused.value.retry
        with pytest.raises(Refused, match='"inputs" must be'):
            await app.read(body(LARGE_JSON), {}, None)

    asyncio.run(read_all())
