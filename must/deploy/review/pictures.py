"""Pictures for a browser: decoded here within the bounds of all decoding, and written anew, so that no byte of a
stranger's file reaches it."""

import io
import threading
from functools import lru_cache

from PIL import Image

from must.base.errors import UserError
from must.data.image.decode import decode
from must.data.loading.reader import ShardReader

SIDES = {"full": 4096, "large": 1024, "small": 160}  # pixels of the longer side, at most
PLAIN = 200  # pixels of the longer side up to which nothing is lost in compression
KEPT = 2_000  # small pictures that are held in memory, a few kilobytes each


class Pictures:
    """Sample number -> (bytes, media type), made when it is asked for. May be called from several threads."""

    def __init__(self, reader: ShardReader) -> None:
        self.reader = reader
        self.lock = threading.Lock()  # the reader has its open files
        self.small = lru_cache(KEPT)(lambda number: self.make(number, SIDES["small"]))

    def get(self, number: int, size: str) -> tuple[bytes, str]:
        """`size` is one of SIDES. Raises ValueError: no such sample, or it cannot be decoded."""
        if not 0 <= number < len(self.reader):
            raise UserError("there is no such picture")
        return self.small(number) if size == "small" else self.make(number, SIDES[size])

    def make(self, number: int, side: int) -> tuple[bytes, str]:
        with self.lock:
            data = self.reader.image(number)
        image = decode(data, self.reader.index.max_pixels, shorter_side=side)
        image.thumbnail((side, side), Image.Resampling.LANCZOS)
        kind = "PNG" if max(image.size) <= PLAIN else "JPEG"
        file = io.BytesIO()
        image.save(file, kind, **({} if kind == "PNG" else {"quality": 88}))
        return file.getvalue(), f"image/{kind.lower()}"
