"""The page's addresses, an ASGI application. All begin with the token, which whoever answers has from the terminal.

GET  /TOKEN/                 the page; /TOKEN/review.js and review.css beside it
GET  /TOKEN/start            {"classes": [...], "who": "..."}
POST /TOKEN/next             {"page"}                            -> {"state", "picture"}
POST /TOKEN/answer           {"page", "position", "kind", "label", "who"} -> the same, once it is on the disk
POST /TOKEN/undo             {"page", "position", "who"}         -> the same
GET  /TOKEN/large/NUMBER, /TOKEN/small/NUMBER                    a picture
"""

import asyncio
import hmac
import json
import sys
import traceback
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, NamedTuple

from must.base.storage import parse_object
from must.base.text import printable
from must.deploy.review.page import STATIC, static
from must.deploy.review.pictures import Pictures
from must.deploy.review.session import Session

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

MOST = 1 << 16  # bytes of a request
DECODING = 2  # pictures that are decoded at a time
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
SAFE = (
    ("content-security-policy", POLICY),
    ("referrer-policy", "no-referrer"),  # the address has the token in it
    ("x-content-type-options", "nosniff"),
    ("cross-origin-resource-policy", "same-origin"),
)


class Reply(NamedTuple):
    body: bytes
    kind: str = "application/json"
    status: int = 200
    kept: bool = False  # by the browser


class App:
    def __init__(self, session: Session, pictures: Pictures, token: str) -> None:
        self.session, self.pictures, self.token = session, pictures, token
        self.decoding = asyncio.Semaphore(DECODING)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        try:
            reply = await self.reply(scope, receive)
        except ValueError as error:
            reply = refused(400, printable(str(error), 300))
        except OSError as error:  # a full disk: the answer is not kept, and the page says so
            reply = refused(507, f"the answer could not be written: {error.strerror or error}")
        except Exception:  # ours; the server goes on
            traceback.print_exc(file=sys.stderr)
            reply = refused(500, "internal error; the terminal has it")
        cache = "private, max-age=3600" if reply.kept else "no-store"
        headers = [
            *SAFE,
            ("content-type", reply.kind),
            ("content-length", str(len(reply.body))),
            ("cache-control", cache),
        ]
        pairs = [(name.encode(), value.encode()) for name, value in headers]
        await send({"type": "http.response.start", "status": reply.status, "headers": pairs})
        await send({"type": "http.response.body", "body": reply.body})

    async def reply(self, scope: Scope, receive: Receive) -> Reply:
        """Raises ValueError: the request is not understood."""
        _, token, *parts = [*scope["path"].split("/"), ""][:8]
        if not hmac.compare_digest(token.encode("utf-8", "replace"), self.token.encode()):
            return refused(404, "there is nothing here; take the whole address from the terminal")
        parts = [part for part in parts if part]
        if scope["method"] in ("GET", "HEAD"):
            return await self.get(parts)
        if scope["method"] != "POST" or len(parts) != 1:
            return refused(404, "no such address")
        said = await body_of(receive)
        page, position = str(said.get("page"))[:64], said.get("position")
        if parts == ["next"]:
            return as_json(await asyncio.to_thread(self.session.next, page))
        if type(position) is not int:
            raise ValueError("position must be a number")
        if parts == ["answer"]:
            return as_json(await asyncio.to_thread(self.session.answer, page, position, said))
        if parts == ["undo"]:
            who = str(said.get("who") or "")
            return as_json(await asyncio.to_thread(self.session.undo, page, position, who))
        return refused(404, "no such address")

    async def get(self, parts: list[str]) -> Reply:
        name = parts[0] if parts else "index.html"
        if name in STATIC and len(parts) < 2:
            return Reply(static(name), STATIC[name])
        if parts == ["start"]:
            return as_json({"classes": self.session.plan.classes, "who": self.session.who})
        if len(parts) == 2 and name in ("large", "small") and parts[1].isdecimal() and len(parts[1]) < 12:
            async with self.decoding:
                data, kind = await asyncio.to_thread(self.pictures.get, int(parts[1]), name == "small")
            return Reply(data, kind, kept=True)
        return refused(404, "no such address")


async def body_of(receive: Receive) -> dict[str, Any]:
    """Raises ValueError: no JSON object, or too much of it."""
    data = b""
    while True:
        message = await receive()
        data += message.get("body", b"")
        if len(data) > MOST:
            raise ValueError("the request is too long")
        if message["type"] != "http.request" or not message.get("more_body", False):
            break
    return parse_object(data, dict, ValueError("the request must be a JSON object"))


def as_json(content: dict[str, Any]) -> Reply:
    return Reply(json.dumps(content).encode())


def refused(status: int, reason: str) -> Reply:
    return Reply(json.dumps({"error": reason}).encode(), status=status)
