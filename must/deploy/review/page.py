"""The page: three files, no build step, no external resources; or one file that contains its pictures.

Pictures are decoded with the usual limits and encoded again, so that no byte of an untrusted file reaches a browser.
"""

import base64
import hashlib
import io
import json
import threading
from importlib import resources
from typing import Any

from PIL import Image

from must.base.errors import UserError
from must.data.image.decode import decode
from must.data.loading.reader import ShardReader
from must.deploy.review.session import Session

SIDES = {"full": 4096, "large": 1024, "small": 160}  # pixels of the longer side, at most
LOSSLESS_SIDE = 200  # pixels of the longer side up to which nothing is lost in compression


class Pictures:
    """Sample number -> (bytes, media type), encoded on request. Thread-safe."""

    def __init__(self, reader: ShardReader) -> None:
        self.reader = reader
        self.lock = threading.Lock()  # for the reader, whose open files are shared

    def get(self, number: int, size: str) -> tuple[bytes, str]:
        """`size` is one of SIDES."""
        if not 0 <= number < len(self.reader):
            raise UserError("there is no such picture")
        side = SIDES[size]
        with self.lock:
            data = self.reader.image(number)
        image = decode(data, self.reader.index.max_pixels, shorter_side=side)
        image.thumbnail((side, side), Image.Resampling.LANCZOS)
        kind = "PNG" if max(image.size) <= LOSSLESS_SIDE else "JPEG"
        file = io.BytesIO()
        image.save(file, kind, **({} if kind == "PNG" else {"quality": 88}))
        return file.getvalue(), f"image/{kind.lower()}"


STATIC = {
    "index.html": "text/html; charset=utf-8",
    "review.js": "text/javascript; charset=utf-8",
    "review.css": "text/css; charset=utf-8",
}

LARGEST_PAGE = 40_000_000  # characters of a page's pictures: about the limit of mail programs and browsers


def static(name: str) -> bytes:
    return resources.files("must.deploy.review").joinpath(name).read_bytes()


def self_contained(session: Session, pictures: Pictures, most: int) -> tuple[bytes, int]:
    """(the page with the first pending pictures, their number): at most `most`, and at most LARGEST_PAGE characters of
    pictures. The page stores answers in the browser and saves them as answers.jsonl. A picture that cannot be decoded
    is omitted among similar pictures, but still asked about in the order.
    """
    review, images = session.review, dict[str, str]()
    shown: list[dict[str, Any]] = []
    size_of_images = 0
    for picture, stream in session.upcoming(most):
        new = dict[str, str]()
        for number, size in [(picture.number, "large"), *((other, "small") for other in picture.similar)]:
            key = f"{size}/{number}"
            if key not in images and (data := data_uri(pictures, number, size)):
                new[key] = data
        size_of_images += sum(map(len, new.values()))
        if size_of_images > LARGEST_PAGE:
            break
        images |= new
        shown.append({**session.describe(picture, stream), "image": picture.image, "sha256": picture.sha256})
    key = hashlib.sha256("".join(picture["sha256"] for picture in shown).encode()).hexdigest()
    content: dict[str, Any] = {"classes": review.classes, "who": session.who, "key": key}  # of its answers' storage
    content |= {"pictures": shown, "images": images}
    data = json.dumps(content, separators=(",", ":")).replace("<", "\\u003c")
    script, style = (static(name).decode() for name in ("review.js", "review.css"))
    policy = (
        f"default-src 'none'; img-src data:; script-src '{digest(script)}'; style-src '{digest(style)}'; "
        "base-uri 'none'; form-action 'none'"
    )
    page = static("index.html").decode()
    page = page.replace("<head>", f'<head>\n<meta http-equiv="Content-Security-Policy" content="{policy}">', 1)
    page = page.replace('<link rel="stylesheet" href="review.css">', f"<style>{style}</style>", 1)
    carried = f'<script type="application/json" id="carried">{data}</script>\n<script>{script}</script>'
    return page.replace('<script src="review.js"></script>', carried, 1).encode(), len(shown)


def data_uri(pictures: Pictures, number: int, size: str) -> str:
    try:
        data, kind = pictures.get(number, size)
    except ValueError:
        return ""
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def digest(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
