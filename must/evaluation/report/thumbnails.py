"""Thumbnails for the report, read again from the shards by sample number, small and few."""

from __future__ import annotations

import base64
import io

from PIL import Image

from must.data.image.decode import decode
from must.data.loading.reader import ShardReader

SIDE = 96  # pixels; shown at about half of that, for screens with two dots a pixel
QUALITY = 80


class Thumbnails:
    """Sample number -> data URI of a JPEG, made once for each sample."""

    def __init__(self, shards: str, split: str, index_sha256: str = "") -> None:
        self.reader = ShardReader(shards, split, sha256=index_sha256)
        self.made: dict[int, str] = {}

    def __call__(self, sample: int) -> str:
        if sample not in self.made:
            self.made[sample] = self.make(self.decoded(sample))
        return self.made[sample]

    def decoded(self, sample: int) -> Image.Image:
        return decode(self.reader.image(sample), self.reader.index.max_pixels, shorter_side=SIDE)

    @staticmethod
    def make(image: Image.Image) -> str:
        """The middle square, at most SIDE pixels wide."""
        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        image = image.crop((left, top, left + side, top + side))
        if side > SIDE:
            image = image.resize((SIDE, SIDE), Image.Resampling.LANCZOS)
        data = io.BytesIO()
        image.save(data, "JPEG", quality=QUALITY, optimize=True)
        return "data:image/jpeg;base64," + base64.b64encode(data.getvalue()).decode()
