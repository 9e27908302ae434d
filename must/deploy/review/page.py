"""The page: three files, no build step, no external resources.

Pictures are decoded with the usual limits and encoded again, so that no byte of an untrusted file reaches a browser.
"""

import io
import threading
from importlib import resources

from PIL import Image

from must.base.errors import UserError
from must.data.image.decode import decode
from must.data.loading.reader import ShardReader

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


def static(name: str) -> bytes:
    return resources.files("must.deploy.review").joinpath(name).read_bytes()
