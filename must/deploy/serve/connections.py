"""HTTP connections that do not wait for ever: uvicorn bounds the time between two requests, this the request's head
and the answer.

A client that sends its head byte by byte, or one without an end, gets 408 or 431 and is let go; so is one that does not
read its answers. The body's time and size are the application's matter (http.py), which sees it come. Where there are
more connections than allowed, those that wait for their client make room: the one that has waited for longest.
"""

import asyncio
import socket
import struct
from collections.abc import Callable
from time import monotonic
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from must.base.errors import UserError

MOST_HEAD = 64 * 1024  # bytes of a request line with its headers, or of a chunked body's framing in a row
SPARE = 64  # connections above the limit, while all others are being answered: health is among them
GRACE = 1.0  # seconds in which a new connection sends something
AT_ONCE = struct.pack("ii", 1, 0)
PHRASES = {408: "Request Timeout", 431: "Request Header Fields Too Large"}


class Room:
    """The connections there are, at most `limit` and as many more as have sent a whole request, up to SPARE.

    A client that has sent nothing for a while goes first, then the one in the middle of a request, between two, or in
    the middle of its answer, that has done nothing for longest. One whose answer is being worked on never does.
    """

    def __init__(self, limit: int, closed: Callable[[], None] = lambda: None) -> None:
        self.limit, self.closed = limit, closed
        self.all: set[Any] = set()
        self.silent: dict[Any, float] = {}  # since when; in this order, here and there
        self.waiting: dict[Any, float] = {}

    @property
    def is_full(self) -> bool:
        return len(self.all) > self.limit

    def enter(self, connection: Any) -> None:
        self.all.add(connection)
        if self.is_full:
            chosen = self.choose()
            if chosen is None and len(self.all) > self.limit + SPARE:
                chosen = connection
            if chosen is not None:
                self.leave(chosen)
                self.closed()
                chosen.transport.abort()
        if connection in self.all:
            self.silent[connection] = monotonic()

    def choose(self) -> Any:
        """The connection to close, None if all are being answered."""
        silent, since = next(iter(self.silent.items()), (None, 0.0))
        if silent is not None and (not self.waiting or monotonic() - since > GRACE):
            return silent
        return next(iter(self.waiting), silent)

    def leave(self, connection: Any) -> None:
        self.all.discard(connection)
        self.work(connection)

    def wait(self, connection: Any) -> None:
        """For its client, which has just done something."""
        self.work(connection)
        if connection in self.all:
            self.waiting[connection] = monotonic()

    def work(self, connection: Any) -> None:
        """Its client has sent a whole request."""
        self.silent.pop(connection, None)
        self.waiting.pop(connection, None)


def protocol_within(seconds: float, room: Room) -> type[HttpToolsProtocol]:
    """The class of connections whose clients have so many seconds for a request's head, and for taking an answer."""

    class Connection(HttpToolsProtocol):
        timer: asyncio.TimerHandle | None = None
        unread: asyncio.TimerHandle | None = None  # runs while answers wait for the client to take them
        beside = 0  # bytes since the last head's end, or the last piece of a body
        head = 0  # bytes of the head that is being read

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            transport.set_write_buffer_limits(high=0)  # whatever is left to send, `pause_writing` is told
            self.begin()
            room.enter(self)

        def connection_lost(self, exc: Exception | None) -> None:
            room.leave(self)
            self.end()
            self.taken()
            super().connection_lost(exc)

        def data_received(self, data: bytes) -> None:
            self.beside += len(data)
            if self.is_idle or self.cycle.more_body:
                room.wait(self)
            super().data_received(data)
            if self.beside > MOST_HEAD:
                self.give_up(431)
            elif self.timer is None and self.is_idle:
                self.begin()

        def on_message_begin(self) -> None:
            self.head = 0
            super().on_message_begin()

        def on_url(self, url: bytes) -> None:
            self.count(len(url))
            super().on_url(url)

        def on_header(self, name: bytes, value: bytes) -> None:
            self.count(len(name) + len(value) + 4)
            super().on_header(name, value)

        def count(self, size: int) -> None:
            """Of a head that comes in one piece, too. Raises: it is too long; the parser stops there."""
            self.head += size
            if self.head > MOST_HEAD:
                raise UserError("a long head")

        def send_400_response(self, msg: str) -> None:
            if self.head > MOST_HEAD:
                self.give_up(431)
            else:
                super().send_400_response(msg)

        def on_headers_complete(self) -> None:
            self.end()
            self.beside = 0
            super().on_headers_complete()

        def on_body(self, body: bytes) -> None:
            self.beside = 0
            super().on_body(body)

        def on_message_complete(self) -> None:
            super().on_message_complete()
            room.work(self)

        def on_response_complete(self) -> None:
            room.wait(self)
            super().on_response_complete()

        def pause_writing(self) -> None:
            super().pause_writing()
            room.wait(self)
            self.unread = self.loop.call_later(seconds, self.reset)

        def resume_writing(self) -> None:
            self.taken()
            super().resume_writing()

        def taken(self) -> None:
            if self.unread is not None:
                self.unread.cancel()
                self.unread = None

        def reset(self) -> None:
            """Closing would wait until the client has read what is sent; so would the kernel, without the option."""
            self.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, AT_ONCE)
            self.transport.abort()

        @property
        def is_idle(self) -> bool:
            """Between two requests, or in the head of one."""
            return self.cycle is None or self.cycle.response_complete

        def begin(self) -> None:
            self.timer = self.loop.call_later(seconds, self.give_up, 408)

        def end(self) -> None:
            if self.timer is not None:
                self.timer.cancel()
                self.timer = None

        def give_up(self, status: int) -> None:
            self.end()
            if self.transport is None or self.transport.is_closing():
                return
            if self.is_idle and self.beside:
                head = f"HTTP/1.1 {status} {PHRASES[status]}\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
                self.transport.write(head.encode())
            self.transport.close()

    return Connection
