"""The registry: models that were promoted, under one prefix, and which of them is the champion.

    REGISTRY/NAME/LATEST                       JSON: the champion's version, and those before it
    REGISTRY/NAME/VERSION/version.json         where the model comes from; written last: a version with it is complete
    REGISTRY/NAME/VERSION/bundle/              model.safetensors, model.json
    REGISTRY/NAME/VERSION/onnx/                model.onnx, labels.txt, ...
    REGISTRY/NAME/decisions/KEY.json           the decision on a run's data and settings: promoted or stopped, and why

A version's name is its index's revision and its weights' checksum, so that a repeated promotion finds its version.
A version has one set of ONNX files."""

import json
import re
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from must.base import storage
from must.base.errors import TransientError, UserError
from must.base.files import ONNX_FILE, VERSION_FILE
from must.base.lock import HeldError, Kind, LockLostError, locked
from must.base.names import safe_relative_path
from must.base.parameters import require
from must.base.storage import ConflictError

LATEST = "LATEST"
MODEL_NAME = re.compile(r"[a-z0-9][-a-z0-9._]{0,62}")
PROMOTION = Kind("must promote", "--version", ".promote.lock", timeout=10.0)
BUNDLE_FOLDER, ONNX_FOLDER = "bundle", "onnx"  # a version's folders

Files = dict[str, str]
"""The files of a version: {FOLDER/NAME: source URI}."""


@dataclass(frozen=True)
class Latest:
    """The content of LATEST. `version` is '' before the first promotion; `previous`: earlier champions, newest last."""

    version: str = ""
    previous: tuple[str, ...] = ()
    moved: str = ""
    reason: str = ""


class OvertakenError(HeldError):
    """Another run promoted a model meanwhile, and this run's model was not compared with it: start the run again."""


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
        return parse_latest(storage.read_versioned(self.make_uri(LATEST))[0], self.make_uri(LATEST))

    def versions(self) -> list[dict[str, Any]]:
        """The description of every complete version, the oldest first."""
        names = [entry.name.split("/") for entry in storage.list_existing(self.uri)]
        versions = [name[0] for name in names if name[1:] == [VERSION_FILE]]
        return sorted(map(self.describe, versions), key=lambda version: version["created"])

    def has(self, version: str) -> bool:
        return storage.exists(self.make_uri(version, VERSION_FILE))

    def bundle(self, version: str) -> str:
        return self.make_uri(version, BUNDLE_FOLDER)

    def describe(self, version: str) -> dict[str, Any]:
        uri = self.make_uri(version, VERSION_FILE)

        def check(content: dict[str, Any]) -> dict[str, Any]:
            top1 = ((content.get("metrics") or {}).get("adapted") or {}).get("top1")
            texts = [content["version"], content["created"], content.setdefault("backbone", "")]
            texts += [fact["sha256"] for fact in content["files"].values()]
            valid = all(isinstance(text, str) for text in texts) and isinstance(top1, float | None)
            require(valid, "a value of another kind")
            return content

        return storage.read_object(uri, check, UserError(f"--registry {uri}: is damaged or of another kind"))

    def checksums(self, version: str) -> dict[str, str]:
        """{name: sha256} of a version's files."""
        return {name: fact["sha256"] for name, fact in self.describe(version)["files"].items()}

    def is_servable(self, version: str) -> bool:
        """Whether it is a complete version with an ONNX file. '' is no version."""
        return bool(version) and self.has(version) and f"{ONNX_FOLDER}/{ONNX_FILE}" in self.checksums(version)

    def add(self, version: str, files: Files, facts: dict[str, Any]) -> None:
        """Copies files to the version's folder; writes its description last. An existing version is not changed, except
        that ONNX files are added to one that has none.
        Raises UserError: it has other ones; TransientError: another program is writing the version."""
        storage.remove_leftovers(self.uri)
        try:  # the lock: two promotions with the same weights and different ONNX files must not mix their files
            with locked(self.make_uri(version), PROMOTION) as check:
                self.write(version, files, facts, check)
        except (HeldError, LockLostError) as error:
            raise TransientError(str(error)) from None
        except ConflictError:
            where = self.make_uri(version)
            raise TransientError(f"{where}: another program wrote it at the same time; run again") from None

    def write(self, version: str, files: Files, facts: dict[str, Any], check: Callable[[], None]) -> None:
        """`add`, with the version's lock; `check` raises if that was lost."""
        uri = self.make_uri(version, VERSION_FILE)
        generation = storage.generation(uri) or 0
        description, missing = {"version": version, "created": now(), **facts, "files": {}}, files
        if generation:
            description, missing = self.describe(version), self.missing(version, files)
            if not missing:
                return
        stored = description["files"] | {
            name: copy(source, self.make_uri(version, name)) for name, source in missing.items()
        }
        check()
        for folder in {name.partition("/")[0] for name in missing}:  # after copying: it may be the files' source
            for entry in list(storage.list_existing(self.make_uri(version, folder))):
                if f"{folder}/{entry.name}" not in stored:  # of a killed promotion
                    storage.delete(self.make_uri(version, folder, entry.name))
        storage.write_bytes(uri, json.dumps({**description, "files": stored}, indent=1).encode(), generation)

    def missing(self, version: str, files: Files) -> Files:
        """Those of `files` that a complete version does not have."""
        stored, uri = self.checksums(version), self.make_uri(version)
        for name, sha256 in model_checksums(files, BUNDLE_FOLDER, ".safetensors").items():
            require(
                stored.get(name) == sha256,
                f"{uri}: is there already and holds another model (sha256 of {name}: {str(stored.get(name))[:12]}, of "
                f"the model to promote: {sha256[:12]}); give another --version",
            )
        new = model_checksums(files, ONNX_FOLDER, ".onnx")
        old = {name: stored[name] for name in stored if name.startswith(f"{ONNX_FOLDER}/") and name.endswith(".onnx")}
        differ = sorted(name for name in new.keys() | old.keys() if new.get(name) != old.get(name))
        require(
            not (new and old and differ),
            f"{uri}: is there already with other ONNX files (different: {', '.join(differ)}); give another --version, "
            "or another --name",
        )
        return {name: files[name] for name in files if name.startswith(f"{ONNX_FOLDER}/") and not old}

    def set_champion(self, version: str, reason: str, expected: str | None = None, back: bool = False) -> Latest:
        """Makes `version` the champion. `expected`: the version that must be the champion now; '' for none, None for
        any. `back`: a rollback, which removes the champions after `version` from the list.
        Raises OvertakenError: LATEST is not `expected`, or another program moved it at the same time."""
        data, generation = storage.read_versioned(self.make_uri(LATEST))
        old = parse_latest(data, self.make_uri(LATEST))
        if old.version == version:  # a retry, or the same model again
            return old
        if expected is not None and old.version != expected:
            raise OvertakenError(
                f"{self.uri}: LATEST is {old.version or 'empty'}, not {expected or 'empty'}, which this model was "
                "compared with; another run promoted meanwhile. Run again: it will be compared with the new champion"
            )
        if back and version not in old.previous:
            raise OvertakenError(
                f"{self.uri}: another run moved LATEST meanwhile, to {old.version}; see --list, run again"
            )
        previous = (*old.previous, old.version)
        if back:  # to before the last time that `version` was champion
            previous = old.previous[: len(old.previous) - 1 - old.previous[::-1].index(version)]
        new = Latest(version, tuple(v for v in previous if v)[-50:], now(), reason)
        try:
            # The id makes every write unique: a write whose response got lost differs from another program's write.
            content = json.dumps({**vars(new), "id": uuid.uuid4().hex}, indent=1).encode()
            storage.write_bytes(self.make_uri(LATEST), content, generation)
        except ConflictError:
            raise OvertakenError(
                f"{self.uri}: another run moved LATEST at the same moment; {version} is stored but is not the "
                "champion. Run again: it will be compared with the new champion"
            ) from None
        return new

    def decision(self, key: str) -> dict[str, Any] | None:
        """The decision on a run of this key, with `outcome` and `at`. None: there is none, or it is damaged."""
        uri = self.make_uri("decisions", f"{key}.json")
        if not storage.exists(uri):
            return None
        with suppress(ValueError):
            decision = storage.read_json(uri, "decisions")
            if all(isinstance(decision.get(name), str) for name in ("outcome", "at")):
                return decision
        return None

    def decide(self, key: str, outcome: str, reasons: list[str]) -> None:
        content = {"outcome": outcome, "at": now(), "reasons": reasons}
        storage.write_bytes(self.make_uri("decisions", f"{key}.json"), json.dumps(content, indent=1).encode())

    def make_uri(self, *parts: str) -> str:
        return storage.join(self.uri, *parts)


def parse_latest(data: bytes | None, uri: str) -> Latest:
    if data is None:
        return Latest()

    def parse(content: dict[str, Any]) -> Latest:
        previous = tuple(safe_relative_path(version, uri) for version in content["previous"])
        return Latest(safe_relative_path(content["version"], uri), previous, content["moved"], content["reason"])

    folder = uri.rpartition("/")[0]
    registry, _, name = folder.rpartition("/")
    bundle = storage.join(folder, "VERSION", BUNDLE_FOLDER)
    command = f"must promote --model {bundle} --registry {registry} --name {name}"
    damage = f"{uri} is damaged; delete it, then promote the champion again: {command}"
    return storage.parse_object(data, parse, UserError(damage))


def model_checksums(files: Files, folder: str, suffix: str) -> dict[str, str]:
    """{name: sha256} of the folder's files with this suffix, which identify the model."""
    names = [name for name in files if name.startswith(f"{folder}/") and name.endswith(suffix)]
    return {name: storage.compute_sha256(files[name]) for name in names}


def copy(source: str, target: str) -> dict[str, Any]:
    """Copies in pieces, as weights may be larger than the memory; returns size and sha256."""
    with storage.open_write(target) as file:
        written = storage.HashingFile(file)
        storage.copy(source, written, follow=False)
    return {"bytes": written.size, "sha256": written.sha256}


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
