"""What a request holds whose client does not read the answer, or is gone: nothing."""

import asyncio
from types import SimpleNamespace

import pytest

from must.deploy.serve.http import App, ClientGone, cancel_on_disconnect
from must.deploy.serve.metrics import Metrics
from must.deploy.serve.protocol import Refused
from must.deploy.serve.work import Work

SCOPE = {"type": "http", "method": "POST", "path": "/v2/models/digits/infer", "query_string": b"", "headers": []}
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
    async def exchange():
        left, given_up = asyncio.Event(), asyncio.Event()

        async def receive():
            await left.wait()
            return {"type": "http.disconnect"}

        async def answer():
            left.set()
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                given_up.set()
                raise

        with pytest.raises(ClientGone):
            await cancel_on_disconnect(answer(), receive)
        assert given_up.is_set()

        async def quick():
            return 7

        assert await cancel_on_disconnect(quick(), asyncio.Event().wait) == 7

    asyncio.run(exchange())
