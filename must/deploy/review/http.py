"""The page's addresses, an ASGI application. All begin with the token, which the terminal prints.

GET  /TOKEN/                 the page; /TOKEN/review.js and review.css beside it
POST /TOKEN/start            {"page"} -> {"classes", "who"}
POST /TOKEN/next             {"page"} -> {"state", "picture"}
POST /TOKEN/show             {"page", "number"} -> the same, of that picture
POST /TOKEN/answer           {"page", "number", "also", "kind", "label", "grid", "who"}
                            -> as next, once the answer is on the disk
POST /TOKEN/undo             {"page", "who"} -> the same
POST /TOKEN/grid             {"page", "label", "sort"} -> {"state", "label", "left", "counts", "pictures"}
POST /TOKEN/end              {"page"} -> {"state", "rows", "changed", "relabelled", "commands"}
POST /TOKEN/leave            {"page"} -> {}; the page is closed
GET  /TOKEN/full/NUMBER, /TOKEN/large/NUMBER, /TOKEN/small/NUMBER    a picture

Until the first review is computed, the response to every POST is {"wait": "why"}.
"""

import asyncio
import hmac
import sys
import traceback
from typing import Any

from must.base.errors import UserError
from must.base.parameters import require
from must.base.storage import parse_object
from must.deploy.review.page import SIDES, STATIC, Pictures, static
from must.deploy.review.session import Session
from must.deploy.serve.http import Receive, Reply, Scope, Send, as_json, refusal_reply, send_reply
from must.deploy.serve.protocol import Refused, expect

LARGEST_REQUEST = 1 << 16  # bytes of a request
ACTIONS = ("start", "next", "show", "answer", "undo", "grid", "end", "leave")
DECODING = 2  # pictures that are decoded at a time
POLICY = (
    b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    b"base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
SAFE = (
    (b"content-security-policy", POLICY),
    (b"referrer-policy", b"no-referrer"),  # the address has the token in it
    (b"x-content-type-options", b"nosniff"),
    (b"cross-origin-resource-policy", b"same-origin"),
)
CACHED, FRESH = ((b"cache-control", value) for value in (b"private, max-age=3600", b"no-store"))  # by the browser


class App:
    def __init__(self, session: Session | None, pictures: Pictures, token: str) -> None:
        self.session, self.pictures, self.token = session, pictures, token
        self.wait = "Loading the model ..."  # the text that a page shows until there is a session
        self.decoding = asyncio.Semaphore(DECODING)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        try:
            reply = await self.reply(scope, receive)
        except Refused as error:
            reply = refusal_reply(error)
        except ValueError as error:
            reply = refusal_reply(Refused(400, str(error)))
        except OSError as error:  # e.g. a full disk: the answer is not stored, and the page shows that
            reply = refusal_reply(Refused(507, f"the answer could not be written: {error.strerror or error}"))
        except Exception:  # a bug; the server continues
            traceback.print_exc(file=sys.stderr)
            reply = refusal_reply(Refused(500, "internal error; the terminal has it"))
        await send_reply(reply, send, *SAFE, *(() if CACHED in reply.more else (FRESH,)))

    async def reply(self, scope: Scope, receive: Receive) -> Reply:
        """Raises ValueError, Refused: the request is not valid."""
        _, token, *parts = [*scope["path"].split("/"), ""][:8]
        valid = hmac.compare_digest(token.encode("utf-8", "replace"), self.token.encode())
        expect(valid, "there is nothing here; take the whole address from the terminal", 404)
        parts = [part for part in parts if part]
        if scope["method"] in ("GET", "HEAD"):
            return await self.get(parts)
        expect(scope["method"] == "POST" and len(parts) == 1, "no such address", 404)
        request = await body_of(receive)
        expect(parts[0] in ACTIONS, "no such address", 404)
        session = self.session
        if session is None:
            return Reply(as_json({"wait": self.wait}))
        if parts[0] == "start":
            return Reply(as_json({"classes": session.review.classes, "who": session.who}))
        page = str(request.get("page"))[:64] or "?"
        return Reply(as_json(await asyncio.to_thread(getattr(session, parts[0]), page, request)))

    async def get(self, parts: list[str]) -> Reply:
        name = parts[0] if parts else "index.html"
        if name in STATIC and len(parts) < 2:
            return Reply(static(name), STATIC[name].encode())
        if len(parts) == 2 and name in SIDES and parts[1].isdecimal() and len(parts[1]) < 12:
            async with self.decoding:
                data, kind = await asyncio.to_thread(self.pictures.get, int(parts[1]), name)
            return Reply(data, kind.encode(), more=(CACHED,))
        raise Refused(404, "no such address")


async def body_of(receive: Receive) -> dict[str, Any]:
    """Raises ValueError: not a JSON object, or too long."""
    data, more = b"", True
    while more:
        message = await receive()
        data, more = data + message.get("body", b""), message.get("more_body", False)
        require(len(data) <= LARGEST_REQUEST, "the request is too long")
    return parse_object(data, dict, UserError("the request must be a JSON object"))
