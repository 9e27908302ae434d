"""Checkpoints: step-named, whole or absent, checked by sha256, written in the background.

``step-000000400.pt`` holds the state, ``step-000000400.json`` (written after it) its size and sha256; ``LAST`` names
the newest. A checkpoint without a matching description does not count.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import warnings
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch

from must import storage

LAST = "LAST"
NAME = re.compile(r"step-(\d{9})\.json")


class Checkpoints:
    """The checkpoints of one run in a folder or under a gs:// prefix."""

    def __init__(self, uri: str, keep: int = 2) -> None:
        self.uri, self.keep = uri, keep
        self._writer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._pending: Future | None = None

    def save(self, step: int, state: dict[str, Any]) -> None:
        """Copies `state` to host memory and writes it in the background; an earlier write's error comes out here."""
        self.wait()
        self._pending = self._writer.submit(self._write, step, copy_to_host(state))

    def wait(self) -> None:
        """Returns when everything is on disk. Raises what went wrong there."""
        if self._pending is not None:
            pending, self._pending = self._pending, None
            pending.result()

    def close(self) -> None:
        self.wait()
        self._writer.shutdown()

    def _write(self, step: int, state: dict[str, Any]) -> None:
        buffer = io.BytesIO()
        torch.save(state, buffer)
        data = buffer.getvalue()
        name = f"step-{step:09d}"
        description = {"step": step, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        storage.write_bytes(storage.join(self.uri, f"{name}.pt"), data)
        storage.write_bytes(storage.join(self.uri, f"{name}.json"), json.dumps(description).encode())
        storage.write_bytes(storage.join(self.uri, LAST), name.encode())
        for old in self.steps()[: -self.keep]:
            self.remove(old)

    def steps(self) -> list[int]:
        """Steps that have a description, ascending."""
        try:
            names = [NAME.fullmatch(entry.name) for entry in storage.list_files(self.uri)]
        except FileNotFoundError:
            return []
        return sorted(int(match.group(1)) for match in names if match)

    def remove(self, step: int) -> None:
        for ending in ("json", "pt"):  # the description first: what is left of a half-done removal does not count
            storage.delete(storage.join(self.uri, f"step-{step:09d}.{ending}"))

    def load_newest(self) -> dict[str, Any] | None:
        """The newest whole checkpoint's state, or None. Damaged ones are passed over with a warning."""
        for step in reversed(self.steps()):
            try:
                return self._load(step)
            except (ValueError, FileNotFoundError) as error:
                warnings.warn(f"checkpoint passed over: {error}", stacklevel=2)
        return None

    def _load(self, step: int) -> dict[str, Any]:
        uri = storage.join(self.uri, f"step-{step:09d}.pt")
        description = json.loads(storage.read_bytes(storage.join(self.uri, f"step-{step:09d}.json")))
        data = storage.read_bytes(uri)
        if len(data) != description["bytes"]:
            raise ValueError(f"{uri} is truncated: {len(data)} of {description['bytes']} bytes")
        if hashlib.sha256(data).hexdigest() != description["sha256"]:
            raise ValueError(f"{uri} is damaged: its sha256 differs")
        return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)


def copy_to_host(value: Any) -> Any:
    """A deep copy with every tensor in host memory, so that training can go on while it is written."""
    if isinstance(value, torch.Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {key: copy_to_host(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(copy_to_host(item) for item in value)
    return value
