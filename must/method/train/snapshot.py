"""A copy of the training state in host memory, so that training can go on while it is written."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class Snapshot:
    """Copies nested states of the same shape again and again, into the same buffers.

    Fresh memory costs more than the copy: the system hands it out page by page. From a GPU the buffers are pinned, so
    that all copies are queued at once and the host waits a single time.
    """

    def __init__(self) -> None:
        self._buffers: dict[tuple, Tensor] = {}

    def take(self, state: dict[str, Any]) -> dict[str, Any]:
        """A deep copy with every tensor in host memory. It is overwritten by the next call."""
        copy = self._copy((), state)
        if torch.cuda.is_available():
            torch.cuda.current_stream().synchronize()
        elif torch.backends.mps.is_available():
            torch.mps.synchronize()
        return copy

    def _copy(self, place: tuple, value: Any) -> Any:
        if isinstance(value, Tensor):
            return self._buffer(place, value).copy_(value.detach(), non_blocking=True)
        if isinstance(value, dict):
            return {key: self._copy((*place, key), item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return type(value)(self._copy((*place, number), item) for number, item in enumerate(value))
        return value

    def _buffer(self, place: tuple, value: Tensor) -> Tensor:
        buffer = self._buffers.get(place)
        if buffer is None or buffer.shape != value.shape or buffer.dtype != value.dtype:
            buffer = torch.empty(value.shape, dtype=value.dtype, pin_memory=value.is_cuda)
            self._buffers[place] = buffer
        return buffer
