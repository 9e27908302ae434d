"""The open inference protocol (v2): parses and validates requests and their pictures, and encodes tensors."""

import base64
import binascii
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import chain, islice
from typing import Any

import numpy as np

from must.base.errors import TransientError
from must.base.text import printable
from must.data.image.cost import Cost, cost, refusal
from must.data.image.decode import decode_view
from must.data.image.preprocess import EvalView

LONGEST_REASON = 400  # characters of a reason, which may quote the request


class Refused(Exception):  # noqa: N818, mostly an error of the client, not of the server
    """`status`: of the HTTP response; `retry`: the same request may succeed later."""

    def __init__(self, status: int, reason: str) -> None:
        self.status, self.reason = status, printable(reason, LONGEST_REASON)
        super().__init__(self.reason)

    @property
    def retry(self) -> bool:
        return self.status == 503


def expect(condition: bool, reason: str, status: int = 400) -> None:
    """Raises Refused unless the condition holds."""
    if not condition:
        raise Refused(status, reason)


NUMPY_TYPES = {"UINT8": np.uint8, "FP32": np.float32, "BOOL": np.bool_}


@dataclass(frozen=True)
class Tensor:
    """A tensor of a response: an array, or for BYTES a list of byte strings in row-major order."""

    name: str
    datatype: str
    shape: list[int]
    data: np.ndarray | list[bytes]

    def raw(self) -> bytes:
        """In the protocol's binary form: little endian, row-major; each byte string after its length."""
        if isinstance(self.data, list):
            return b"".join(struct.pack("<I", len(item)) + item for item in self.data)
        return np.ascontiguousarray(self.data).tobytes()

    def plain(self) -> list[Any]:
        """A flat list for JSON."""
        if isinstance(self.data, list):
            return [item.decode("utf-8", "replace") for item in self.data]
        return self.data.ravel().tolist()


def byte_strings(raw: bytes | memoryview, count: int, where: str) -> list[bytes]:
    """The `count` byte strings of a raw BYTES tensor. Raises Refused: they do not fill it exactly."""
    strings, offset = [], 0
    for _ in range(count):
        expect(offset + 4 <= len(raw), f"{where}: its bytes end before its last string does")
        (length,) = struct.unpack_from("<I", raw, offset)
        expect(offset + 4 + length <= len(raw), f"{where}: its bytes end before its last string does")
        strings.append(bytes(raw[offset + 4 : offset + 4 + length]))
        offset += 4 + length
    expect(offset == len(raw), f"{where}: {len(raw) - offset} bytes too many")
    return strings


def numbers(raw: bytes | memoryview, datatype: str, shape: list[int], where: str) -> np.ndarray:
    """A raw tensor of numbers. Raises Refused: the bytes do not fit the shape."""
    kind = np.dtype(NUMPY_TYPES[datatype])
    size = int(np.prod(shape, dtype=object)) * kind.itemsize
    expect(len(raw) == size, f"{where}: {len(raw)} bytes, its shape and type make {size}")
    return np.frombuffer(raw, kind).reshape(shape)


def from_json(data: Any, datatype: str, shape: list[int], where: str) -> np.ndarray:
    """Numbers from JSON, flat or nested. Raises Refused: not numbers, of another shape, or too large for memory."""
    check_leaves(data, math.prod(shape), where)
    try:
        with np.errstate(all="raise"):
            values = np.asarray(data)
            expect(values.dtype.kind in "iufb", f"{where}: expected numbers")
            if datatype == "UINT8":
                expect(
                    values.dtype.kind in "iu" and (not values.size or (values.min() >= 0 and values.max() <= 255)),
                    f"{where}: UINT8 takes whole numbers from 0 to 255",
                )
            return values.astype(NUMPY_TYPES[datatype]).reshape(shape)
    except (ValueError, TypeError, OverflowError, FloatingPointError):
        raise Refused(400, f"{where}: its data do not make a {datatype} tensor of shape {shape}") from None
    except MemoryError:
        raise Refused(503, f"{where}: the server has no memory left for it; try again") from None


def check_leaves(data: Any, most: int, where: str) -> None:
    """Called before numpy converts the data: it would allocate the size of the longest string for each string.
    Raises Refused: the nested lists contain anything but numbers, or more than `most` of them."""
    level = [data]
    while (kinds := set(map(type, level))) == {list}:
        level = list(islice(chain.from_iterable(level), most + 1))
        expect(len(level) <= most, f"{where}: more data than the {most} numbers of its shape")
    expect(kinds <= {int, float, bool}, f"{where}: expected numbers")


INPUT = "image"
DEFAULT_OUTPUTS = ("class", "top_probability", "abstained")
OUTPUTS = (*DEFAULT_OUTPUTS, "probability", "embedding")


@dataclass(frozen=True)
class Output:
    """A requested tensor."""

    name: str
    binary: bool = False


@dataclass(frozen=True)
class InferRequest:
    """Images, as files or pixels, and the requested outputs. None: the server's setting."""

    images: list[bytes] | np.ndarray
    outputs: list[Output] = field(default_factory=lambda: [Output(name) for name in DEFAULT_OUTPUTS])
    top_k: int | None = None
    abstain: float | None = None
    id: str = ""

    @property
    def wants_embedding(self) -> bool:
        return any(output.name == "embedding" for output in self.outputs)


@dataclass(frozen=True)
class Limits:
    max_images: int
    size: int  # S, of the model's input
    takes_floats: bool  # whether the graph takes normalised floats


def read_request(request: Mapping[str, Any], blob: memoryview, limits: Limits) -> InferRequest:
    """A request's JSON and the bytes that follow it. Raises Refused: the request is not valid for this server."""
    tensors = request.get("inputs")
    expect(isinstance(tensors, list) and len(tensors) == 1, f'"inputs" must be a list of one tensor, named "{INPUT}"')
    assert isinstance(tensors, list)
    tensor = tensors[0]
    expect(isinstance(tensor, dict), "an input must be an object with name, datatype, shape")
    parameters = mapping(tensor.get("parameters"), "an input's parameters")
    size, raw = parameters.get("binary_data_size"), None
    if size is not None:
        expect(type(size) is int and 0 <= size <= len(blob), "binary_data_size is more than the bytes that came")
        raw, blob = blob[:size], blob[size:]
    expect(not len(blob), f"{len(blob)} bytes follow the request that belong to no input")
    images = read_images(tensor, raw, limits)
    general, name = mapping(request.get("parameters"), '"parameters"'), request.get("id", "")
    expect(isinstance(name, str) and len(name) <= 200, '"id" must be a short string')
    return InferRequest(images, read_outputs(request.get("outputs"), general), **read_parameters(general), id=name)


def read_images(tensor: Mapping[str, Any], raw: memoryview | None, limits: Limits) -> list[bytes] | np.ndarray:
    """Files, or pixels: uint8 [N, S, S, 3], or float32 [N, 3, S, S]. The contents are checked later."""
    name, datatype, shape = tensor.get("name"), tensor.get("datatype"), tensor.get("shape")
    expect(name == INPUT, f'the input must be named "{INPUT}"')
    expect(
        isinstance(shape, list) and 1 <= len(shape) <= 4 and all(type(n) is int and 0 < n < 1 << 31 for n in shape),
        f'input "{INPUT}": "shape" must be a list of positive numbers, images first',
    )
    assert isinstance(shape, list)
    expect(shape[0] <= limits.max_images, f"{shape[0]} images; this server takes {limits.max_images} a request", 413)
    where, data = f'input "{INPUT}"', tensor.get("data")
    expect(raw is not None or data is not None, f'{where}: neither "data" nor bytes that follow were received')
    if datatype == "BYTES":
        expect(math.prod(shape) == shape[0], f"{where}: BYTES must be of shape [N] or [N, 1], a file each")
        if raw is not None:
            return byte_strings(raw, shape[0], where)
        expect(isinstance(data, list), f'{where}: "data" must be a list')
        assert isinstance(data, list)
        flat = [item[0] if isinstance(item, list) and len(item) == 1 else item for item in data]  # ["a"] or [["a"]]
        expect(len(flat) == shape[0], f"{where}: {len(flat)} strings, its shape says {shape[0]}")
        return [from_base64(item) for item in flat]
    check_pixels(datatype, shape, limits)
    assert isinstance(datatype, str)
    return numbers(raw, datatype, shape, where) if raw is not None else from_json(data, datatype, shape, where)


def check_pixels(datatype: object, shape: list[int], limits: Limits) -> None:
    """Raises Refused: not a tensor that this model accepts."""
    S = limits.size
    if datatype == "UINT8":
        expect(shape[1:] == [S, S, 3], f"UINT8 pixels must be of shape [N, {S}, {S}, 3], not {shape}")
    elif datatype == "FP32":
        expect(limits.takes_floats, "this model takes pixels (UINT8) or files (BYTES); it normalises itself")
        expect(shape[1:] == [3, S, S], f"FP32 must be of shape [N, 3, {S}, {S}], normalised, not {shape}")
    else:
        raise Refused(400, 'the input\'s "datatype" must be BYTES (files), UINT8 (pixels) or FP32 (normalised)')


def read_outputs(entries: Any, general: Mapping[str, Any]) -> list[Output]:
    """The requested outputs, or DEFAULT_OUTPUTS."""
    binary, names = general.get("binary_data_output") is True, ", ".join(OUTPUTS)
    if not entries:
        return [Output(name, binary) for name in DEFAULT_OUTPUTS]
    expect(isinstance(entries, list) and len(entries) <= len(OUTPUTS), f'"outputs" may be a list of {names}')
    outputs = []
    for entry in entries:
        expect(isinstance(entry, dict), "an output must be an object with a name")
        name = entry.get("name")
        expect(isinstance(name, str) and name in OUTPUTS, f"an output is one of {names}")
        parameters = mapping(entry.get("parameters"), "an output's parameters")
        outputs.append(Output(name, parameters.get("binary_data", binary) is True))
    expect(len({output.name for output in outputs}) == len(outputs), "an output is asked for twice")
    return outputs


def read_parameters(general: Mapping[str, Any]) -> dict[str, Any]:
    """top_k and abstain of a request. Raises Refused: they are out of range."""
    top_k, abstain = general.get("top_k"), general.get("abstain")
    expect(top_k is None or (type(top_k) is int and 1 <= top_k < 1 << 31), "top_k must be a whole number from 1")
    expect(abstain is None or (type(abstain) in (int, float) and 0 <= abstain <= 1), "abstain must be from 0 to 1")
    return {"top_k": top_k, "abstain": abstain}


def mapping(value: Any, where: str) -> Mapping[str, Any]:
    expect(value is None or isinstance(value, dict), f"{where} must be an object")
    return value or {}


def from_base64(text: object) -> bytes:
    """A picture in JSON: base64, with or without the prefix "data:image/...;base64,". Raises Refused: not valid."""
    expect(isinstance(text, str), "a picture in JSON is a string of base64")
    assert isinstance(text, str)
    if text.startswith("data:"):
        text = text.partition(",")[2]
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise Refused(400, "a picture in JSON must be a valid base64 string") from None


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
