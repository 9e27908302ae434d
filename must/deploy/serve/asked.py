"""What a request of the open inference protocol (v2) asks for."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from must.deploy.serve.pictures import from_base64
from must.deploy.serve.refused import Refused, wanted
from must.deploy.serve.tensors import byte_strings, from_json, numbers

INPUT = "image"
DEFAULT_OUTPUTS = ("class", "top_probability", "abstained")
OUTPUTS = (*DEFAULT_OUTPUTS, "probability", "embedding")


@dataclass(frozen=True)
class Output:
    """A tensor of the answer: its name; `classification`: as Triton's extension, so many "probability:number:class"."""

    name: str
    classification: int = 0
    binary: bool = False


@dataclass(frozen=True)
class Asked:
    """Images, as files or pixels, and what is to be told of them. None: as the server was told."""

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


def read_asked(request: Mapping[str, Any], blob: memoryview, limits: Limits) -> Asked:
    """A request's JSON and the bytes that follow it. Raises Refused: it is not what this server takes."""
    tensors = request.get("inputs")
    wanted(isinstance(tensors, list) and len(tensors) == 1, f'"inputs" must be a list of one tensor, named "{INPUT}"')
    assert isinstance(tensors, list)
    tensor = tensors[0]
    wanted(isinstance(tensor, dict), "an input must be an object with name, datatype, shape")
    parameters = mapping(tensor.get("parameters"), "an input's parameters")
    size, raw = parameters.get("binary_data_size"), None
    if size is not None:
        wanted(type(size) is int and 0 <= size <= len(blob), "binary_data_size is more than the bytes that came")
        raw, blob = blob[:size], blob[size:]
    wanted(not len(blob), f"{len(blob)} bytes follow the request that belong to no input")
    images = read_images(tensor, raw, limits)
    general = mapping(request.get("parameters"), '"parameters"')
    return Asked(
        images, read_outputs(request.get("outputs"), general), **read_parameters(general), id=text(request, "id")
    )


def read_images(tensor: Mapping[str, Any], raw: memoryview | None, limits: Limits) -> list[bytes] | np.ndarray:
    """Files, or pixels: uint8 [N, S, S, 3], or float32 [N, 3, S, S]. The contents are checked later."""
    name, datatype, shape = tensor.get("name"), tensor.get("datatype"), tensor.get("shape")
    wanted(name == INPUT, f'the input must be named "{INPUT}"')
    wanted(
        isinstance(shape, list) and 1 <= len(shape) <= 4 and all(type(n) is int and 0 < n < 1 << 31 for n in shape),
        f'input "{INPUT}": "shape" must be a list of positive numbers, images first',
    )
    assert isinstance(shape, list)
    wanted(shape[0] <= limits.max_images, f"{shape[0]} images; this server takes {limits.max_images} a request", 413)
    where, data = f'input "{INPUT}"', tensor.get("data")
    wanted(raw is not None or data is not None, f'{where}: neither "data" nor bytes that follow came')
    if datatype == "BYTES":
        wanted(math.prod(shape) == shape[0], f"{where}: BYTES must be of shape [N] or [N, 1], a file each")
        if raw is not None:
            return byte_strings(raw, shape[0], where)
        flat = flattened(data, where)
        wanted(len(flat) == shape[0], f"{where}: {len(flat)} strings, its shape says {shape[0]}")
        return [from_base64(item) for item in flat]
    check_pixels(datatype, shape, limits)
    assert isinstance(datatype, str)
    return numbers(raw, datatype, shape, where) if raw is not None else from_json(data, datatype, shape, where)


def check_pixels(datatype: object, shape: list[int], limits: Limits) -> None:
    """Raises Refused: no tensor that this model takes."""
    S = limits.size
    if datatype == "UINT8":
        wanted(shape[1:] == [S, S, 3], f"UINT8 pixels must be of shape [N, {S}, {S}, 3], not {shape}")
    elif datatype == "FP32":
        wanted(limits.takes_floats, "this model takes pixels (UINT8) or files (BYTES); it normalises itself")
        wanted(shape[1:] == [3, S, S], f"FP32 must be of shape [N, 3, {S}, {S}], normalised, not {shape}")
    else:
        raise Refused(400, 'the input\'s "datatype" must be BYTES (files), UINT8 (pixels) or FP32 (normalised)')


def read_outputs(given: Any, general: Mapping[str, Any]) -> list[Output]:
    """The outputs that were asked for, or the usual ones."""
    binary = general.get("binary_data_output") is True
    if not given:
        return [Output(name, 0, binary) for name in DEFAULT_OUTPUTS]
    wanted(isinstance(given, list) and len(given) <= len(OUTPUTS), f'"outputs" may be a list of {", ".join(OUTPUTS)}')
    found = []
    for item in given:
        wanted(isinstance(item, dict), "an output must be an object with a name")
        name = item.get("name")
        wanted(isinstance(name, str) and name in OUTPUTS, f"an output is one of {', '.join(OUTPUTS)}")
        parameters = mapping(item.get("parameters"), "an output's parameters")
        count = parameters.get("classification", 0)
        wanted(type(count) is int and 0 <= count < 1 << 31, "classification must be a number of classes")
        found.append(Output(name, count, parameters.get("binary_data", binary) is True))
    wanted(len({output.name for output in found}) == len(found), "an output is asked for twice")
    return found


def read_parameters(general: Mapping[str, Any]) -> dict[str, Any]:
    """top_k and abstain of a request. Raises Refused: they are out of range."""
    top_k, abstain = general.get("top_k"), general.get("abstain")
    wanted(top_k is None or (type(top_k) is int and 1 <= top_k < 1 << 31), "top_k must be a whole number from 1")
    wanted(abstain is None or (type(abstain) in (int, float) and 0 <= abstain <= 1), "abstain must be from 0 to 1")
    return {"top_k": top_k, "abstain": abstain}


def mapping(value: Any, what: str) -> Mapping[str, Any]:
    wanted(value is None or isinstance(value, dict), f"{what} must be an object")
    return value or {}


def text(request: Mapping[str, Any], name: str) -> str:
    value = request.get(name, "")
    wanted(isinstance(value, str) and len(value) <= 200, f'"{name}" must be a short string')
    return value


def flattened(data: Any, where: str) -> list[Any]:
    """["a", "b"] or [["a"], ["b"]] as a flat list."""
    wanted(isinstance(data, list), f'{where}: "data" must be a list')
    return [item[0] if isinstance(item, list) and len(item) == 1 else item for item in data]
