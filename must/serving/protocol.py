"""The open inference protocol (v2) in JSON: parses and checks requests and their pictures, and makes the answers.

N images of S x S pixels, K classes."""

import base64
import binascii
import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any, NamedTuple

import numpy as np

from must.base.storage import decode_json
from must.base.text import make_printable
from must.data.image.decode import decode_view
from must.data.image.limits import detect_format
from must.data.image.preprocess import EvalView
from must.prediction.onnx_model import STORED
from must.prediction.writer import Prediction

LONGEST_REASON = 400  # characters of a reason, which may quote the request
# Limits of JSON, whose parser blocks all threads: enough for one image of the model's size as numbers. Pictures as
# base64 have no such limit.
VALUES_A_PIXEL, FEWEST_VALUES, OBJECTS = 4, 100_000, 1000
INPUT = "image"
DEFAULT_OUTPUTS = ("class", "top_probability", "abstained")
OUTPUTS = (*DEFAULT_OUTPUTS, "probability", "similarity")
NUMPY_TYPES = {"UINT8": np.uint8, "FP32": np.float32}
PICTURE_FORMATS = "JPEG, PNG or WebP"
LEAST_STRIPPED = 500  # bytes; any shorter picture may be without line breaks and zeros


class Refused(Exception):  # noqa: N818, mostly an error of the client, not of the server
    """`status`: of the HTTP response."""

    def __init__(self, status: int, reason: str) -> None:
        self.status, self.reason = status, make_printable(reason, LONGEST_REASON)
        super().__init__(self.reason)


def expect(condition: bool, reason: str, status: int = 400) -> None:
    if not condition:
        raise Refused(status, reason)


# -- requests ----------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class InferRequest:
    """Images, as files or pixels, and the names of the requested outputs. None: the server's setting."""

    images: list[bytes] | np.ndarray
    outputs: tuple[str, ...] = DEFAULT_OUTPUTS
    top_k: int | None = None
    abstain: float | None = None
    id: str = ""


def parse_request(data: bytes, max_images: int, size: int, takes_floats: bool) -> InferRequest:
    """The body of a request. `size`: S, of the model's input; `takes_floats`: the graph takes normalised floats."""
    request = parse_json(data, max(FEWEST_VALUES, VALUES_A_PIXEL * size**2))
    tensors: Any = request.get("inputs")
    name = request.get("id", "")
    expect(isinstance(tensors, list) and len(tensors) == 1, f'"inputs" must be a list of one tensor, named "{INPUT}"')
    expect(isinstance(tensors[0], dict), "an input must be an object with name, datatype, shape, data")
    expect(isinstance(name, str) and len(name) <= 200, '"id" must be a short string')
    parameters, outputs = request.get("parameters") or {}, read_outputs(request.get("outputs"))
    expect(isinstance(parameters, dict), '"parameters" must be an object')
    images = read_images(tensors[0], max_images, size, takes_floats)
    return InferRequest(images, outputs, **read_parameters(parameters), id=name)


def parse_json(data: bytes, most: int = FEWEST_VALUES) -> dict[str, Any]:
    few = data.count(b",") + data.count(b"[") <= most and data.count(b"{") <= OBJECTS
    expect(few, "JSON of too many values; send pictures as base64, or as files to /classify", 413)
    try:
        request = decode_json(data)
    except (ValueError, RecursionError):
        raise Refused(400, "the body is no JSON; a picture as it is goes to /classify") from None
    expect(isinstance(request, dict), "the body must be a JSON object")
    return request


def read_images(tensor: Mapping[str, Any], max_images: int, size: int, takes_floats: bool) -> list[bytes] | np.ndarray:
    """Files, or pixels: uint8 [N, S, S, 3], or float32 [N, 3, S, S]. The contents of files are checked later."""
    shape: Any = tensor.get("shape")
    data: Any = tensor.get("data")
    datatype, where, S = tensor.get("datatype"), f'input "{INPUT}"', size
    expect(tensor.get("name") == INPUT, f'the input must be named "{INPUT}"')
    expect(
        isinstance(shape, list) and 1 <= len(shape) <= 4 and all(type(n) is int and 0 < n < 1 << 31 for n in shape),
        f'{where}: "shape" must be a list of positive numbers, images first',
    )
    expect(shape[0] <= max_images, f"{shape[0]} images; this server takes {max_images} a request", 413)
    expect(isinstance(data, list), f'{where}: "data" must be a list; binary tensors are not taken')
    if datatype == "BYTES":
        expect(math.prod(shape) == shape[0], f"{where}: BYTES must be of shape [N] or [N, 1], a file each")
        flat = [item[0] if isinstance(item, list) and len(item) == 1 else item for item in data]  # ["a"] or [["a"]]
        expect(len(flat) == shape[0], f"{where}: {len(flat)} strings, its shape says {shape[0]}")
        return [decode_base64(item) for item in flat]
    if datatype == "UINT8":
        expect(shape[1:] == [S, S, 3], f"UINT8 pixels must be of shape [N, {S}, {S}, 3], not {shape}")
    else:
        expect(datatype == "FP32", 'the input\'s "datatype" must be BYTES (files), UINT8 (pixels) or FP32 (normalised)')
        expect(takes_floats, "this model takes pixels (UINT8) or files (BYTES); it normalises itself")
        expect(shape[1:] == [3, S, S], f"FP32 must be of shape [N, 3, {S}, {S}], normalised, not {shape}")
    return parse_tensor(data, str(datatype), shape, where)


def parse_tensor(data: Any, datatype: str, shape: list[int], where: str) -> np.ndarray:
    check_leaves(data, math.prod(shape), where)
    try:
        with np.errstate(all="raise"):
            values = np.asarray(data)
            if datatype == "UINT8":
                fits = values.dtype.kind in "iu" and (not values.size or (values.min() >= 0 and values.max() <= 255))
                expect(fits, f"{where}: UINT8 takes whole numbers from 0 to 255")
            nested = list(values.shape)
            expect(len(nested) == 1 or nested == shape, f"{where}: its data are of shape {nested}, not {shape}")
            return values.astype(NUMPY_TYPES[datatype]).reshape(shape)
    except (ValueError, TypeError, OverflowError, FloatingPointError):
        raise Refused(400, f"{where}: its data do not make a {datatype} tensor of shape {shape}") from None


def check_leaves(data: Any, most: int, where: str) -> None:
    """Called before numpy converts the data: it would allocate the size of the longest string for each string."""
    level = [data]
    while (kinds := set(map(type, level))) == {list}:
        level = list(islice(chain.from_iterable(level), most + 1))
        expect(len(level) <= most, f"{where}: more data than the {most} numbers of its shape")
    expect(kinds <= {int, float, bool}, f"{where}: expected numbers")


def decode_base64(text: Any) -> bytes:
    """A picture in JSON: base64, with or without the prefix "data:image/...;base64,"."""
    expect(isinstance(text, str), "a picture in JSON is a string of base64")
    try:
        return base64.b64decode(text.partition(",")[2] if text.startswith("data:") else text, validate=True)
    except (binascii.Error, ValueError):
        raise Refused(400, "a picture in JSON must be a valid base64 string") from None


def read_outputs(entries: Any) -> tuple[str, ...]:
    valid = isinstance(entries, list | None) and all(isinstance(entry, dict) for entry in entries or [])
    names: list[Any] = [entry.get("name") for entry in entries or []] if valid else [None]
    expect(
        all(name in OUTPUTS and names.count(name) == 1 for name in names[: len(OUTPUTS) + 1]),
        f'"outputs" may be a list of objects with a name, each once: {", ".join(OUTPUTS)}',
    )
    return tuple(names) or DEFAULT_OUTPUTS


def read_parameters(values: Mapping[str, Any]) -> dict[str, Any]:
    top_k, abstain = values.get("top_k"), values.get("abstain")
    expect(top_k is None or (type(top_k) is int and 1 <= top_k < 1 << 31), "top_k must be a whole number from 1")
    if abstain is not None:
        valid = type(abstain) in (int, float) and (0 <= abstain <= 1 or abstain == STORED)
        expect(valid, "abstain must be from 0 to 1, or -1 for the model's threshold")
    return {"top_k": top_k, "abstain": abstain}


# -- pictures ----------------------------------------------------------------------------------------------------------
def decode_pixels(data: bytes, view: EvalView, max_pixels: int) -> np.ndarray:
    """uint8 [S, S, 3], by the decoder and view of `must predict`. Fewer formats than it reads, so that clients can
    reach fewer decoders.
    Raises Refused: 415 for another format, 422 for a picture that is damaged or too large."""
    stripped = len(data) > LEAST_STRIPPED and not any(byte in data for byte in b"\0\r\n")  # curl -d leaves these out
    hint = "; the body is to be the file itself: curl --data-binary @photo.jpg" * (stripped or data[:2] == b"--")
    expect(bool(detect_format(data)), f"not a picture of a known format; send {PICTURE_FORMATS}{hint}", 415)
    try:
        return decode_view(data, view, max_pixels)
    except ValueError as error:
        raise Refused(422, f"the picture cannot be read: {error}{hint}") from None


# -- answers -----------------------------------------------------------------------------------------------------------
class RankedClasses(NamedTuple):
    """Of N images: the classes in their order; probability float32 [N, K]; the threshold below which the model
    abstains, 0: never."""

    ranked: list[Prediction]
    probability: np.ndarray
    threshold: float


def make_output_tensors(predictions: RankedClasses, names: tuple[str, ...]) -> list[dict[str, Any]]:
    """Outputs of OUTPUTS in the protocol's JSON: row-major, flat."""
    ranked, tensors = predictions.ranked, []
    columns: dict[str, tuple[str, list[Any]]] = {
        # an empty name: the model abstained
        "class": ("BYTES", [["" if one.abstained else one.classes[0], *one.classes[1:]] for one in ranked]),
        "top_probability": ("FP32", [one.probabilities for one in ranked]),
        "abstained": ("BOOL", [one.abstained for one in ranked]),
        "probability": ("FP32", predictions.probability.tolist()),
        # -1: the model has no memory
        "similarity": ("FP32", [-1.0 if one.similarity is None else one.similarity for one in ranked]),
    }
    for name in names:
        datatype, rows = columns[name]
        shape = [len(rows), len(rows[0])] if isinstance(rows[0], list) else [len(rows)]
        data = list(chain.from_iterable(rows)) if len(shape) == 2 else rows
        tensors.append({"name": name, "datatype": datatype, "shape": shape, "data": data})
    return tensors


def make_classification(predictions: RankedClasses) -> dict[str, Any]:
    """The first image's predictions: class (None if the model abstained), abstained, similarity if the model has a
    memory, threshold if the class is less probable, and [{"class": ..., "probability": ...}, ...]."""
    first = predictions.ranked[0]
    answer: dict[str, Any] = {"class": first.name, "abstained": first.abstained}
    answer |= {} if first.similarity is None else {"similarity": round(first.similarity, 4)}
    below = first.abstained and first.probability < predictions.threshold
    answer |= {"threshold": round(predictions.threshold, 6)} if below else {}
    return answer | {"predictions": [{"class": name, "probability": round(p, 6)} for name, p in first.top]}
