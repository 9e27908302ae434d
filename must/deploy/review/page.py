"""The page: three files, no build step, nothing loaded from elsewhere; or one file that carries its pictures."""

import base64
import hashlib
import json
from importlib import resources
from typing import Any

from must.deploy.review.pictures import Pictures
from must.deploy.review.session import Session
from must.method.answers.review import RANDOM

STATIC = {
    "index.html": "text/html; charset=utf-8",
    "review.js": "text/javascript; charset=utf-8",
    "review.css": "text/css; charset=utf-8",
}

LARGEST = 40_000_000  # characters of a page's pictures: what mail and browsers take


def static(name: str) -> bytes:
    return resources.files("must.deploy.review").joinpath(name).read_bytes()


def self_contained(session: Session, pictures: Pictures, most: int) -> tuple[bytes, int]:
    """(the page with the first pictures that have no answer yet, how many those are): `most` of them, and no more than
    LARGEST characters hold. It keeps answers in the browser and saves them as answers.jsonl. Pictures that cannot be
    decoded are left out of strips, not of the order.
    """
    review, images = session.review, dict[str, str]()
    shown: list[dict[str, Any]] = []
    taken = 0
    for picture in [picture for picture in review.pictures if session.open(picture)][:most]:
        new = dict[str, str]()
        for number, size in [(picture.number, "large"), *((other, "small") for other in picture.similar)]:
            key = f"{size}/{number}"
            if key not in images and (data := data_uri(pictures, number, size)):
                new[key] = data
        taken += sum(map(len, new.values()))
        if taken > LARGEST:
            break
        images |= new
        shown.append({**session.describe(picture.number), "image": picture.image, "sha256": picture.sha256})
    content: dict[str, Any] = {"classes": review.classes, "random": review.order == RANDOM, "who": session.who}
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
