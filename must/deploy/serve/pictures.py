"""The pictures that a client may send: JPEG, PNG or WebP, of limited size."""

import numpy as np

from must.base.errors import TransientError
from must.data.image.cost import cost, refusal
from must.data.image.decode import decode_view
from must.data.image.headers.base import Cost
from must.data.image.preprocess import EvalView
from must.deploy.serve.protocol import Refused, expect

PICTURE_FORMATS = "JPEG, PNG or WebP"
MOST_STEPS = 3000  # segments or chunks of a picture, each of which Pillow reads in Python


def is_picture(data: bytes | memoryview) -> bool:
    """By its first bytes. Fewer formats than `must predict` reads, so that clients can reach fewer decoders."""
    head = bytes(data[:12])
    return head.startswith((b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n")) or (head[:4] == b"RIFF" and head[8:12] == b"WEBP")


def cost_of(data: bytes, max_pixels: int) -> Cost:
    """The cost of decoding the picture, from its header.
    Raises Refused: 415 for another format, 422 for a picture that is damaged, too large, or costs too much."""
    form = "; this is a form, and the body is to be the file itself: curl --data-binary @photo.jpg"
    expect(
        is_picture(data),
        f"not a picture of a known format; send {PICTURE_FORMATS}" + form * (bytes(data[:2]) == b"--"),
        415,
    )
    try:
        decoding = cost(data, MOST_STEPS)
    except ValueError as error:
        raise Refused(422, f"the picture cannot be read: {error}") from None
    if reason := refusal(decoding, max_pixels):
        raise Refused(422, f"the picture cannot be read: {reason}")
    return decoding


def pixels_of(data: bytes, view: EvalView, max_pixels: int) -> np.ndarray:
    """uint8 [S, S, 3], by the decoder and view of `must predict`. Raises Refused: 422 for a picture that is damaged."""
    try:
        return decode_view(data, view, max_pixels)
    except TransientError:
        raise Refused(503, "the server has no memory left for this picture; try again") from None
    except ValueError as error:
        raise Refused(422, f"the picture cannot be read: {error}") from None
