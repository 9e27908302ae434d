"""The page as a web application: three files, no build step, no external resources.

Pictures are decoded with the usual limits and encoded again, so that no byte of an untrusted file reaches a browser.
"""

import asyncio
import hmac
import io
import sys
import threading
import traceback
from importlib import resources
from typing import Any

from PIL import Image
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from must.base.errors import UserError
from must.base.parameters import require
from must.base.storage import parse_object
from must.data.format import load_index
from must.data.image.decode import decode
from must.data.reader import ShardReader
from must.reviewing.progress import CHANGED
from must.reviewing.session import ACTIONS, Session
from must.serving.http import Json, Refusal
from must.serving.protocol import Refused, expect

SIDES = {"full": 4096, "large": 1024, "small": 160}  # pixels of the longer side, at most
LOSSLESS_SIDE = 200  # pixels of the longer side up to which nothing is lost in compression
STATIC = {"index.html": "text/html", "review.js": "text/javascript", "review.css": "text/css"}
LARGEST_REQUEST = 1 << 16  # bytes of a request
DECODING = 2  # pictures that are decoded at a time
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
SAFE = {
    "content-security-policy": POLICY,
    "referrer-policy": "no-referrer",  # the address has the token in it
    "x-content-type-options": "nosniff",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}
CACHED = {"cache-control": "private, max-age=3600"}  # by the browser


class App:
    """An ASGI application. All addresses begin with the token, which the terminal prints.

    GET  /TOKEN/                 the page; /TOKEN/review.js and review.css beside it
    POST /TOKEN/start            -> {"classes", "who", "change"}
    POST /TOKEN/next             {"mode", "label", "more"} -> {"state", "picture", "screen"}
    POST /TOKEN/show             {"number"} -> the same, of that picture
    POST /TOKEN/answer           {"number", "kind", "label"} or {"screen", "right"} -> as next, once the answers
                                 are on the disk; and "missed", see session.py
    POST /TOKEN/undo             -> the same
    POST /TOKEN/end              -> {"state", "rows", "accepted", "classes", "changed", "relabelled", "commands", ...}
    POST /TOKEN/leave            -> {}; the page is closed
    GET  /TOKEN/full/NUMBER, /TOKEN/large/NUMBER, /TOKEN/small/NUMBER    a picture

    Every POST also has "page", "browser" and "who" (session.py). Until the first review is computed, the response to
    each is {"wait": "why"}.
    """

    def __init__(self, session: Session | None, reader: ShardReader, token: str) -> None:
        self.session, self.reader, self.token = session, reader, token
        self.reading = threading.Lock()  # for the reader, whose open files are shared
        self.wait = "Loading the model ..."  # the text that a page shows until there is a session
        self.decoding = asyncio.Semaphore(DECODING)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            response = await self.respond(Request(scope, receive))
        except Refused as error:
            response = Refusal(error)
        except (ValueError, ClientDisconnect) as error:
            response = Refusal(Refused(400, str(error)))
        except OSError as error:  # e.g. a full disk: the answer is not stored, and the page shows that
            response = Refusal(Refused(507, f"the answer could not be written: {error.strerror or error}"))
        except Exception:  # a bug; the server continues
            traceback.print_exc(file=sys.stderr)
            response = Refusal(Refused(500, "internal error; the terminal has it"))
        for name, value in SAFE.items():
            response.headers.setdefault(name, value)
        await response(scope, receive, send)

    async def respond(self, request: Request) -> Response:
        """Raises ValueError, Refused: the request is not valid."""
        _, token, *parts = [*request.scope["path"].split("/"), ""][:8]
        valid = hmac.compare_digest(token.encode("utf-8", "replace"), self.token.encode())
        expect(valid, "there is nothing here; take the whole address from the terminal", 404)
        parts = [part for part in parts if part]
        if request.method in ("GET", "HEAD"):
            return await self.get(parts)
        expect(request.method == "POST" and len(parts) == 1, "no such address", 404)
        values = await read_json(request)
        action, session = parts[0], self.session
        expect(action in ("start", *ACTIONS), "no such address", 404)
        if session is None:
            return Json({"wait": self.wait})
        if action == "start":
            return Json({"classes": session.review.classes, "who": session.who, "change": session.change})
        page = str(values.get("page"))[:64] or "?"
        return Json(await asyncio.to_thread(session.act, action, page, values))

    async def get(self, parts: list[str]) -> Response:
        name = parts[0] if parts else "index.html"
        if name in STATIC and len(parts) < 2:
            data = resources.files("must.reviewing").joinpath(name).read_bytes()
            return Response(data, media_type=STATIC[name])
        if len(parts) == 2 and name in SIDES and parts[1].isdecimal() and len(parts[1]) < 12:
            async with self.decoding:
                data, kind = await asyncio.to_thread(self.encode_picture, int(parts[1]), SIDES[name])
            return Response(data, headers=CACHED, media_type=kind)
        raise Refused(404, "no such address")

    def encode_picture(self, number: int, side: int) -> tuple[bytes, str]:
        """(bytes, media type) of a sample's picture, whose longer side has at most `side` pixels."""
        require(number < len(self.reader), "there is no such picture")
        with self.reading:
            try:
                data = self.reader.image(number)
            except UserError:
                require(load_index(self.reader.uri).sha256 == self.reader.index.sha256, CHANGED)
                raise
        image = decode(data, self.reader.index.max_pixels, side, self.reader.index.levels)
        image.thumbnail((side, side), Image.Resampling.LANCZOS)
        kind = "PNG" if max(image.size) <= LOSSLESS_SIDE else "JPEG"
        file = io.BytesIO()
        image.save(file, kind, **({} if kind == "PNG" else {"quality": 88}))
        return file.getvalue(), f"image/{kind.lower()}"


async def read_json(request: Request) -> dict[str, Any]:
    data = b""
    async for part in request.stream():
        data += part
        require(len(data) <= LARGEST_REQUEST, "the request is too long")
    return parse_object(data, dict, UserError("the request must be a JSON object"))
