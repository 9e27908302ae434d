"""HTTP connections that do not wait for ever: uvicorn bounds the time between two requests, this the request's head
and the answer.

A client that sends its head byte by byte, or one without an end, gets 408 or 431 and is let go; so is one that does not
read its answers. The body's time and size are the application's matter (http.py), which sees it come.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MOST_HEAD = 64 * 1024  # bytes of a request line with its headers, or of a chunked body's framing in a row
AT_ONCE = struct.pack("ii", 1, 0)
PHRASES = {408: "Request Timeout", 431: "Request Header Fields Too Large"}


def protocol_within(seconds: float) -> type[HttpToolsProtocol]:
    """The class of connections whose clients have so many seconds for a request's head, and for taking an answer."""

    class Connection(HttpToolsProtocol):
        timer: asyncio.TimerHandle | None = None
        unread: asyncio.TimerHandle | None = None  # runs while answers wait for the client to take them
        beside = 0  # bytes since the last head's end, or the last piece of a body

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            transport.set_write_buffer_limits(high=0)  # whatever is left to send, `pause_writing` is told
            self.begin()

        def connection_lost(self, exc: Exception | None) -> None:
            self.end()
            self.taken()
            super().connection_lost(exc)

        def data_received(self, data: bytes) -> None:
            self.beside += len(data)
            super().data_received(data)
            if self.beside > MOST_HEAD:
                self.give_up(431)
            elif self.timer is None and self.is_idle:
                self.begin()

        def on_headers_complete(self) -> None:
            self.end()
            self.beside = 0
            super().on_headers_complete()

        def on_body(self, body: bytes) -> None:
            self.beside = 0
            super().on_body(body)

        def pause_writing(self) -> None:
            super().pause_writing()
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
