"""The registry: models that were promoted, under one prefix, and which of them is the champion.

    REGISTRY/NAME/LATEST                       JSON: the champion's version, and those before it
    REGISTRY/NAME/VERSION/version.json         where the model comes from; written last: what has it is whole
    REGISTRY/NAME/VERSION/bundle/              model.safetensors, model.json
    REGISTRY/NAME/VERSION/onnx/                model.onnx, labels.txt, ...
    REGISTRY/NAME/decisions/KEY.json           what became of a run's data and settings: promoted or stopped, and why

A version's name is its index's revision and its weights' checksum, so that a repeated promotion finds its own again;
where these weights are there with another ONNX file, that file's checksum follows.
"""

import hashlib
import io
import json
import re
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from must.base import storage
from must.base.errors import TransientError, UserError
from must.base.files import VERSION_FILE
from must.base.lock import HeldError, Kind, LockLostError, locked
from must.base.names import below
from must.base.parameters import require
from must.base.storage import ConflictError

LATEST = "LATEST"
MODEL_NAME = re.compile(r"[a-z0-9][-a-z0-9._]{0,62}")
PROMOTION = Kind("must promote", "--version", ".promote.lock", patience=10.0)
BUNDLE_FOLDER, ONNX_FOLDER = "bundle", "onnx"  # a version's folders

Folders = dict[str, list[tuple[str, str]]]
"""What a version is made from: by folder, (source, name there)."""


@dataclass(frozen=True)
class Latest:
    """What LATEST says. `version` is '' before the first promotion; `previous`: earlier champions, newest last."""

    version: str = ""
    previous: tuple[str, ...] = ()
    moved: str = ""
    reason: str = ""


class DamagedError(UserError):
    """LATEST holds no champion."""


class OvertakenError(HeldError):
    """Another run promoted a model meanwhile, with which this one was not compared: to be run again from its start."""


class OtherOnnxError(UserError):
    """The version has other ONNX files. `key`: a short name for those that were to be added."""

    def __init__(self, text: str, key: str) -> None:
        super().__init__(text)
        self.key = key


class Registry:
    """The models of one name."""

    def __init__(self, uri: str, name: str) -> None:
        require(bool(uri), "--registry is missing; give a folder or gs://bucket/prefix")
        require(
            MODEL_NAME.fullmatch(name) is not None,
            f"--name {name}: use small letters, digits, '-', '.' and '_', at most 63 characters",
        )
        self.uri, self.name = storage.join(uri, name), name

    def latest(self) -> Latest:
        """Raises ValueError: LATEST is damaged."""
        return latest_of(storage.read_versioned(self.uri_of(LATEST))[0], self.uri_of(LATEST))

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
        return self.uri_of(version, BUNDLE_FOLDER)

    def held(self, version: str) -> dict[str, Any]:
        """{name: sha256} of a version's files. Raises ValueError: its description is damaged."""
        uri = self.uri_of(version, VERSION_FILE)
        return storage.read_object(
            uri, lambda version: {name: fact["sha256"] for name, fact in version["files"].items()}, other_kind(uri)
        )

    def add(self, version: str, folders: Folders, facts: dict[str, Any]) -> None:
        """Copies files to the version's place; its description last. What is there already stays as it is: only ONNX
        files are added to a version that was promoted without.

        Raises:
            ValueError: a version of that name has other weights, or (OtherOnnxError) other ONNX files.
            TransientError: another program is writing the version.
        """
        uri = self.uri_of(version, VERSION_FILE)
        storage.remove_leftovers(self.uri)
        with self.alone(version) as check:
            generation = storage.generation(uri) or 0
            described, lacking = {"version": version, "created": now(), **facts, "files": {}}, folders
            if generation:
                described, lacking = storage.read_json(uri, "--registry"), self.lacking(version, folders)
                if not lacking:
                    return
            files = dict(described["files"])
            for folder, members in lacking.items():
                for source, name in members:
                    files[f"{folder}/{name}"] = copy(source, self.uri_of(version, folder, name))
            check()
            for folder, members in lacking.items():
                if members:
                    keep_only({name for _, name in members}, self.uri_of(version, folder))
            storage.write_bytes(uri, json.dumps({**described, "files": files}, indent=1).encode(), generation)

    @contextmanager
    def alone(self, version: str) -> Iterator[Callable[[], None]]:
        """Nobody else writes the version while the block lasts: of two promotions with the same weights and other ONNX
        files, a version must not get some files of each. Gives a function that raises if somebody does.
        Raises TransientError: somebody does, or did."""
        try:
            with locked(self.uri_of(version), PROMOTION) as check:
                yield check
        except (HeldError, LockLostError) as error:
            raise TransientError(str(error)) from None
        except ConflictError:
            raise TransientError(
                f"{self.uri_of(version)}: another program wrote it at the same time; run again"
            ) from None

    def lacking(self, version: str, folders: Folders) -> Folders:
        """Those of the folders that a version, which is whole, is without.
        Raises ValueError: it has other weights, or (OtherOnnxError) other ONNX files."""
        held, place = self.held(version), self.uri_of(version)
        for name, sha256 in sums(folders, BUNDLE_FOLDER, ".safetensors").items():
            require(
                held.get(name) == sha256,
                f"{place}: is there already and holds another model (sha256 of {name}: {str(held.get(name))[:12]}, of "
                f"the model to promote: {sha256[:12]}); give another --version",
            )
        wanted = sums(folders, ONNX_FOLDER, ".onnx")
        there = {name: held[name] for name in held if name.startswith(f"{ONNX_FOLDER}/") and name.endswith(".onnx")}
        if wanted and there and wanted != there:
            differ = sorted(name for name in wanted.keys() | there.keys() if wanted.get(name) != there.get(name))
            raise OtherOnnxError(
                f"{place}: is there already with other ONNX files (different: {', '.join(differ)}); give another "
                "--version",
                hashlib.sha256(json.dumps(wanted, sort_keys=True).encode()).hexdigest()[:8],
            )
        return {ONNX_FOLDER: folders[ONNX_FOLDER]} if wanted and not there else {}

    def set_champion(self, version: str, reason: str, expected: str | None = None, back: bool = False) -> Latest:
        """Makes `version` the champion, unless another program moved LATEST meanwhile.

        Args:
            expected: the version that must be the champion now; '' for none, None for any.
            back: a rollback, which forgets the champions after `version`.

        Raises:
            OvertakenError: LATEST is not what it was expected to be, or was moved at the same time.
        """
        data, seen = storage.read_versioned(self.uri_of(LATEST))
        old = latest_of(data, self.uri_of(LATEST))
        if old.version == version:  # a retry, or the same model again
            return old
        if expected is not None and old.version != expected:
            raise OvertakenError(
                f"{self.uri}: LATEST is {old.version or 'empty'}, not {expected or 'empty'}, which this model was "
                "compared with; another run promoted meanwhile. Run again: it will be compared with the new champion"
            )
        kept = before_last(version, old.previous) if back else (*old.previous, old.version)
        return self._move(Latest(version, tuple(v for v in kept if v)[-50:], now(), reason), seen)

    def mend(self, version: str) -> Latest:
        """Makes `version` the champion where LATEST is damaged; who was it before is not known any more."""
        _, seen = storage.read_versioned(self.uri_of(LATEST))
        return self._move(Latest(version, (), now(), "LATEST was damaged"), seen)

    def _move(self, new: Latest, seen: storage.Generation) -> Latest:
        try:
            # The number makes each writing unlike any other: an answer that got lost is told from a rival's writing.
            content = json.dumps({**vars(new), "id": uuid.uuid4().hex}, indent=1).encode()
            storage.write_bytes(self.uri_of(LATEST), content, seen)
        except ConflictError:
            raise OvertakenError(
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


def before_last(version: str, previous: tuple[str, ...]) -> tuple[str, ...]:
    """The champions before `version` was one for the last time: it may have come back."""
    return previous[: len(previous) - 1 - previous[::-1].index(version)]


def latest_of(data: bytes | None, uri: str) -> Latest:
    if data is None:
        return Latest()

    def checked(content: dict[str, Any]) -> Latest:
        previous = tuple(below(version, uri) for version in content["previous"])
        return Latest(below(content["version"], uri), previous, content["moved"], content["reason"])

    damage = f"{uri} is damaged; write the champion's version anew with: must promote --rollback --to VERSION"
    return storage.parse_object(data, checked, DamagedError(damage))


def described(uri: str) -> dict[str, Any]:
    """A version's description. Raises ValueError: without what a list of versions tells."""

    def checked(found: dict[str, Any]) -> dict[str, Any]:
        top1 = ((found["metrics"] or {}).get("adapted") or {}).get("top1")
        sound = all(isinstance(found[name], str) for name in ("version", "created", "backbone"))
        require(sound and isinstance(top1, float | None), "a value of another kind")
        return found

    return storage.read_object(uri, checked, other_kind(uri))


def other_kind(uri: str) -> ValueError:
    return UserError(f"--registry {uri}: is damaged or of another kind")


def is_of(version: str, weights: str) -> bool:
    """Whether a version is the one that is named after these weights, or one of them with another ONNX file."""
    return re.fullmatch(re.escape(weights) + r"(-[0-9a-f]{8})?", version) is not None


def sums(folders: Folders, folder: str, suffix: str) -> dict[str, str]:
    """{its name in a version: sha256} of the files of a folder that tell one model from another."""
    return {f"{folder}/{name}": sha256_of(uri) for uri, name in folders.get(folder, []) if name.endswith(suffix)}


def sha256_of(uri: str) -> str:
    """Read in pieces, as `copy` does."""
    hashing = storage.HashingFile(io.BytesIO(), limit=0)
    storage.copy(uri, hashing)
    return hashing.sha256


def keep_only(names: set[str], folder: str) -> None:
    """Deletes what a killed promotion left. After the copying: the folder may be where the files come from."""
    for entry in list(storage.list_files(folder)):
        if entry.name not in names:
            storage.delete(storage.join(folder, entry.name))


def copy(source: str, target: str) -> dict[str, Any]:
    """Copies in pieces, for weights may be larger than the memory; returns size and sha256."""
    with storage.open_write(target) as file:
        written = storage.HashingFile(file)
        storage.copy(source, written, follow=False)
    return {"bytes": written.size, "sha256": written.sha256}


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
