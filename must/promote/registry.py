"""The registry: models that were promoted, under one prefix, and which of them is the champion.

    REGISTRY/NAME/LATEST                       JSON: the champion's version, and those before it
    REGISTRY/NAME/VERSION/version.json         where the model comes from; written last: what has it is whole
    REGISTRY/NAME/VERSION/bundle/              model.safetensors, model.json
    REGISTRY/NAME/VERSION/onnx/                model.onnx, labels.txt, ...
    REGISTRY/NAME/decisions/KEY.json           what became of a run's data and settings: promoted or stopped, and why

A version's name is its index's revision and its weights' checksum, so that a repeated promotion writes the same again.
"""

from __future__ import annotations

import json
import re
import uuid
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from must import storage
from must.names import below
from must.parameters import require
from must.promote import pointer
from must.storage import ConflictError

LATEST, VERSION_FILE = "LATEST", "version.json"
NAME = re.compile(r"[a-z0-9][-a-z0-9._]{0,62}")


@dataclass(frozen=True)
class Latest:
    """What LATEST says. `version` is '' before the first promotion; `previous`: earlier champions, newest last."""

    version: str = ""
    previous: tuple[str, ...] = ()
    moved: str = ""
    reason: str = ""


class DamagedError(ValueError):
    """LATEST holds no champion."""


class Registry:
    """The models of one name."""

    def __init__(self, uri: str, name: str) -> None:
        require(bool(uri), "--registry: where promoted models live is missing; give a folder or gs://bucket/prefix")
        require(
            NAME.fullmatch(name) is not None,
            f"--name {name}: small letters, digits, '-', '.' and '_' make a name, at most 63 of them",
        )
        self.uri, self.name = storage.join(uri, name), name

    def latest(self) -> Latest:
        """Raises ValueError: LATEST is damaged."""
        return parse(pointer.read(self.uri_of(LATEST))[0], self.uri_of(LATEST))

    def versions(self) -> list[dict[str, Any]]:
        """Every whole version's description, the oldest first. Raises ValueError: one is damaged."""
        try:
            names = [entry.name for entry in storage.list_files(self.uri)]
        except (FileNotFoundError, NotADirectoryError):
            return []
        files = [name for name in names if name.count("/") == 1 and name.endswith(f"/{VERSION_FILE}")]
        return sorted((described(self.uri_of(file)) for file in files), key=lambda version: version["created"])

    def has(self, version: str) -> bool:
        return storage.exists(self.uri_of(version, VERSION_FILE))

    def bundle(self, version: str) -> str:
        return self.uri_of(version, "bundle")

    def add(self, version: str, folders: dict[str, list[tuple[str, str]]], facts: dict[str, Any]) -> None:
        """Copies files, {"bundle": [(source, name)]}, to the version's place; its description last.

        Raises:
            ValueError: a version of that name has other weights.
        """
        files = {}
        for folder, members in folders.items():
            for source, name in members:
                files[f"{folder}/{name}"] = copy(source, self.uri_of(version, folder, name))
        description = {"version": version, "created": now(), **facts, "files": files}
        storage.write_bytes(self.uri_of(version, VERSION_FILE), json.dumps(description, indent=1).encode())

    def set_champion(self, version: str, reason: str, expected: str | None = None, back: bool = False) -> Latest:
        """Makes `version` the champion, unless another program moved LATEST meanwhile.

        Args:
            expected: the version that must be the champion now; '' for none, None for any.
            back: a rollback, which forgets the champions after `version`.

        Raises:
            ValueError: LATEST is not what it was expected to be, or was moved at the same time.
        """
        data, token = pointer.read(self.uri_of(LATEST))
        old = parse(data, self.uri_of(LATEST))
        if old.version == version:  # a retry, or the same model again
            return old
        require(
            expected is None or old.version == expected,
            f"{self.uri}: LATEST is {old.version or 'empty'}, not {expected or 'empty'}, which this model was compared "
            "with; another run promoted meanwhile. Run again: it will be compared with the new champion",
        )
        kept = old.previous[: old.previous.index(version)] if back else (*old.previous, old.version)
        return self._move(Latest(version, tuple(v for v in kept if v)[-50:], now(), reason), token)

    def mend(self, version: str) -> Latest:
        """Makes `version` the champion where LATEST is damaged; who was it before is not known any more."""
        _, token = pointer.read(self.uri_of(LATEST))
        return self._move(Latest(version, (), now(), "LATEST was damaged"), token)

    def _move(self, new: Latest, token: pointer.Token) -> Latest:
        try:
            # The number makes each writing unlike any other: an answer that got lost is told from a rival's writing.
            pointer.compare_and_swap(
                self.uri_of(LATEST), json.dumps({**vars(new), "id": uuid.uuid4().hex}, indent=1).encode(), token
            )
        except ConflictError:
            raise ValueError(
                f"{self.uri}: another run moved LATEST at the same moment; {new.version} is stored but is not "
                "the champion. Run again: it will be compared with the new champion"
            ) from None
        return new

    def decision(self, key: str) -> dict[str, Any] | None:
        """What became of a run of this key: texts, `outcome` and `at`. None: nothing, or what is there is damaged."""
        uri = self.uri_of("decisions", f"{key}.json")
        if not storage.exists(uri):
            return None
        with suppress(ValueError):
            found = storage.read_json(uri, "decisions")
            if all(isinstance(found.get(name), str) for name in ("outcome", "at")):
                return found
        return None

    def decide(self, key: str, outcome: str, reasons: list[str]) -> None:
        content = {"outcome": outcome, "at": now(), "reasons": reasons}
        storage.write_bytes(self.uri_of("decisions", f"{key}.json"), json.dumps(content, indent=1).encode())

    def uri_of(self, *parts: str) -> str:
        return storage.join(self.uri, *parts)


def parse(data: bytes | None, uri: str) -> Latest:
    if data is None:
        return Latest()
    try:
        content = json.loads(data)
        previous = tuple(below(version, uri) for version in content["previous"])
        return Latest(below(content["version"], uri), previous, content["moved"], content["reason"])
    except (ValueError, KeyError, TypeError, RecursionError):
        raise DamagedError(
            f"{uri} is damaged; write the champion's version anew with: must promote --rollback --to VERSION"
        ) from None


def described(uri: str) -> dict[str, Any]:
    """A version's description. Raises ValueError: without what a list of versions tells."""
    found = storage.read_json(uri, "--registry")
    try:
        top1 = ((found["metrics"] or {}).get("adapted") or {}).get("top1")
        sound = all(isinstance(found[name], str) for name in ("version", "created", "backbone"))
    except (KeyError, AttributeError):
        top1, sound = None, False
    require(sound and isinstance(top1, float | None), f"--registry {uri}: is damaged or of another kind")
    return found


def copy(source: str, target: str) -> dict[str, Any]:
    """Copies in pieces, for weights may be larger than the memory; returns size and sha256."""
    with storage.open_write(target) as file:
        written = storage.HashingFile(file)
        storage.copy(source, written)
    return {"bytes": written.size, "sha256": written.sha256}


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
