"""The registry: promoted models under one prefix, and which of them is the champion; and `must promote`, which
adds a model as a version and the champion, or rolls back to an earlier champion.

    REGISTRY/NAME/LATEST                       JSON: the champion's version, and those before it
    REGISTRY/NAME/VERSION/version.json         where the model comes from; written last: a version with it is complete
    REGISTRY/NAME/VERSION/bundle/              model.safetensors, model.json
    REGISTRY/NAME/VERSION/onnx/                model.onnx, labels.txt, ...
    REGISTRY/NAME/decisions/KEY.json           the decision on a run's data and settings: promoted or stopped, and why

A version's name is its index's revision and its weights' checksum, so that a repeated promotion finds its version.
A version has one set of ONNX files."""

import json
import logging
import re
import shlex
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from must.base import storage
from must.base.errors import TransientError, UserError
from must.base.lock import HeldError, Kind, LockLostError, locked
from must.base.parameters import require
from must.base.storage import ConflictError, check_relative_path, list_names, require_no_links
from must.base.text import make_printable
from must.config import PromoteConfig
from must.config.work import DESCRIPTION_FILE, ONNX_FILE, VERSION_FILE, WEIGHTS_FILE, find_work
from must.evaluation.gate import read_decision
from must.evaluation.result import read_metrics
from must.model.description import Description, load_description, require_same_model, require_weights
from must.prediction.onnx_model import check_onnx

logger = logging.getLogger(__name__)


LATEST = "LATEST"
MODEL_NAME = re.compile(r"[a-z0-9][-a-z0-9._]{0,62}")
PROMOTION = Kind("must promote", "--version", ".promote.lock", timeout=10.0)
BUNDLE_FOLDER, ONNX_FOLDER = "bundle", "onnx"  # a version's folders

Files = dict[str, str]
"""The files of a version: {FOLDER/NAME: source URI}."""


@dataclass(frozen=True)
class Latest:
    """The content of LATEST. `version` is '' before the first promotion; `previous`: earlier champions, newest last;
    `rolled_back`: versions that a person took back, which no run of the pipeline promotes again."""

    version: str = ""
    previous: tuple[str, ...] = ()
    rolled_back: tuple[str, ...] = ()
    moved: str = ""
    reason: str = ""


class OvertakenError(HeldError):
    """Another run promoted a model meanwhile, and this run's model was not compared with it: start the run again."""


class OtherOnnxError(UserError):
    """The registry has this version with other ONNX files."""


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
        return self.read_latest()[0]

    def read_latest(self) -> tuple[Latest, int | str]:
        """And its generation, for a conditional write."""
        uri = self.make_uri(LATEST)
        data, generation = storage.read_versioned(uri)
        if data is None:
            return Latest(), generation

        def parse(content: dict[str, Any]) -> Latest:
            version = check_relative_path(content["version"], uri)
            lists = (content["previous"], content["rolled_back"])
            previous, back = (tuple(check_relative_path(name, uri) for name in names) for names in lists)
            return Latest(version, previous, back, content["moved"], content["reason"])

        again = self.make_command("VERSION")
        damage = UserError(f"{uri} is damaged; delete it, then promote the champion again: {again}")
        return storage.parse_object(data, parse, damage), generation

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
        generation = storage.find_generation(uri) or 0
        description, missing = {"version": version, "created": format_now(), **facts, "files": {}}, files
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
        for name, sha256 in list_model_checksums(files, BUNDLE_FOLDER, ".safetensors").items():
            require(
                stored.get(name) == sha256,
                f"{uri}: is there already and holds another model (sha256 of {name}: {str(stored.get(name))[:12]}, of "
                f"the model to promote: {sha256[:12]}); give another --version",
            )
        new = list_model_checksums(files, ONNX_FOLDER, ".onnx")
        old = {name: stored[name] for name in stored if name.startswith(f"{ONNX_FOLDER}/") and name.endswith(".onnx")}
        differ = sorted(name for name in new.keys() | old.keys() if new.get(name) != old.get(name))
        if new and old and differ:
            raise OtherOnnxError(
                f"{uri}: is there already with other ONNX files (different: {', '.join(differ)}); give another "
                "--version, or another --name"
            )
        return {name: files[name] for name in files if name.startswith(f"{ONNX_FOLDER}/") and not old}

    def set_champion(self, version: str, reason: str, expected: str | None = None, back: bool = False) -> Latest:
        """Makes `version` the champion. `expected`: the version that must be the champion now; '' for none, None for
        any. `back`: a rollback, which removes the champions after `version` from the list.
        Raises OvertakenError: LATEST is not `expected`, or another program moved it at the same time."""
        old, generation = self.read_latest()
        if old.version == version:  # a retry, or the same model again
            return old
        moved = OvertakenError(f"{self.uri}: another run moved LATEST meanwhile; see --list, run again")
        if back and (old.version != expected or version not in old.previous):
            raise moved
        if expected is not None and old.version != expected:
            raise OvertakenError(
                f"{self.uri}: LATEST is {old.version or 'empty'}, not {expected or 'empty'}, which this model was "
                "compared with; another run promoted meanwhile. Run again: it will be compared with the new champion"
            )
        previous, rolled_back = (*old.previous, old.version), old.rolled_back
        if back:  # to before the last time that `version` was champion
            place = len(old.previous) - 1 - old.previous[::-1].index(version)
            previous, rolled_back = old.previous[:place], (*rolled_back, *old.previous[place:], old.version)
        rolled_back = tuple(v for v in dict.fromkeys(rolled_back) if v != version)[-50:]
        new = Latest(version, tuple(v for v in previous if v)[-50:], rolled_back, format_now(), reason)
        try:
            # The id makes every write unique: a write whose response got lost differs from another program's write.
            content = json.dumps({**vars(new), "id": uuid.uuid4().hex}, indent=1).encode()
            storage.write_bytes(self.make_uri(LATEST), content, generation)
        except ConflictError:
            raise moved from None
        return new

    def decision(self, key: str) -> dict[str, Any] | None:
        """The decision on a run of this key, with `outcome` and `at`. None: there is none, or it is damaged."""
        with suppress(UserError):
            decision = storage.read_json(self.make_uri("decisions", f"{key}.json"), "decisions")
            if all(isinstance(decision.get(name), str) for name in ("outcome", "at")):
                return decision
        return None

    def decide(self, key: str, outcome: str, reasons: list[str]) -> None:
        content = {"outcome": outcome, "at": format_now(), "reasons": reasons}
        storage.write_bytes(self.make_uri("decisions", f"{key}.json"), json.dumps(content, indent=1).encode())

    def make_command(self, version: str) -> str:
        """What a person types to promote a version of the registry."""
        registry, _, name = self.uri.rpartition("/")
        flags = ["--model", self.bundle(version), "--version", version, "--registry", registry, "--name", name]
        return shlex.join(["must", "promote", *flags])

    def make_uri(self, *parts: str) -> str:
        return storage.join(self.uri, *parts)


def list_model_checksums(files: Files, folder: str, suffix: str) -> dict[str, str]:
    """{name: sha256} of the folder's files with this suffix, which identify the model."""
    names = [name for name in files if name.startswith(f"{folder}/") and name.endswith(suffix)]
    return {name: storage.compute_sha256(files[name]) for name in names}


def copy(source: str, target: str) -> dict[str, Any]:
    """Copies in pieces, as weights may be larger than the memory; returns size and sha256."""
    with storage.open_write(target) as file:
        written = storage.HashingFile(file)
        storage.copy(source, written, follow=False)
    return {"bytes": written.size, "sha256": written.sha256}


def format_now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


ROLLED_BACK = "rolled back from"  # begins the reason in LATEST


def promote(config: PromoteConfig) -> Latest:
    """The stage. Returns the new content of LATEST."""
    registry = Registry(config.registry, config.name)
    if config.list:
        return print_champion(registry)
    return roll_back(registry, config.to) if config.rollback else add_version(registry, config)


def add_version(registry: Registry, config: PromoteConfig) -> Latest:
    description = load_description(config.model)
    decision = read_decision(config.decision) if config.decision else None
    metrics = read_metrics(config.metrics) if config.metrics else None
    if metrics:
        require_same_model(f"--metrics {config.metrics}", metrics.model.weights_sha256, description, "must evaluate")
    if decision:
        require_same_model(f"--decision {config.decision}", decision.weights_sha256, description, "must gate")
    require(
        decision is None or decision.passed,
        f"--decision {config.decision}: the gate stopped this model; --decision '' overrules it",
    )
    provenance = description.provenance
    version = config.version or make_version_name(description)
    current = registry.latest().version
    require(
        not decision or decision.outcome != "kept at zero-shot" or not current or current == version,
        f"--decision {config.decision}: nothing was kept of the adaptation, the model is zero-shot's; "
        f"{registry.uri} has a champion, which stays",
    )
    models = {"baseline": metrics.baseline, "adapted": metrics.adapted} if metrics else {}
    facts: dict[str, Any] = {
        "backbone": description.backbone,
        "pretrained": description.pretrained,
        "classes": len(description.classes),
        "must_version": description.must_version,
        "champion_before": config.champion,
        "decision": asdict(decision) if decision else None,
        "metrics": {name: one.numbers if one else {} for name, one in models.items()} if metrics else None,
        "index_sha256": provenance.index_sha256 or None,
        "index_revision": provenance.index_revision,
        "git_revision": provenance.git_revision,
    }
    require(
        bool(config.onnx) or not registry.is_servable(current) or registry.is_servable(version),
        f"{registry.uri}: `must serve` can serve the champion, {current}, and not this model, which has no ONNX file: "
        f"{advise_export(config)}",
    )
    store(registry, config, description, version, facts)
    expected = {"": None, "none": ""}.get(config.champion, config.champion)
    latest = registry.set_champion(version, "promoted", expected)
    before = latest.previous[-1] if latest.previous else "nothing"
    state = "already" if version == current else f"now (before: {before})"
    logger.info(f"{registry.uri}: LATEST is {version} {state} -> {registry.make_uri(version)}")
    if not registry.is_servable(version):
        lack = f"without an ONNX file `must serve` cannot serve {version}"
        logger.warning(f"{registry.uri}: {lack}: {advise_export(config)}")
    return latest


def advise_export(config: PromoteConfig) -> str:
    work = find_work(PromoteConfig, {"model": config.model})
    export, flag = (f"must export {shlex.quote(work)}", "") if work else ("must export", " with --onnx")
    return f"run `{export}`, then promote again{flag}"


def store(
    registry: Registry, config: PromoteConfig, description: Description, version: str, facts: dict[str, Any]
) -> None:
    """Adds the model to the registry unless it has it."""
    require_no_links(config.model, "--model")
    weights = storage.join(config.model, WEIGHTS_FILE)
    require(storage.exists(weights), f"{weights}: is missing")
    require_weights(weights, description, storage.compute_sha256(weights))
    bundle = (WEIGHTS_FILE, DESCRIPTION_FILE)
    files = {f"{BUNDLE_FOLDER}/{name}": storage.join(config.model, name) for name in bundle}
    if config.onnx:
        require_no_links(config.onnx, "--onnx")
        names = [name for name in list_names(config.onnx) if not any(part.startswith(".") for part in name.split("/"))]
        files |= {f"{ONNX_FOLDER}/{name}": storage.join(config.onnx, name) for name in names}
        require(ONNX_FILE in names, f"--onnx {config.onnx}: no {ONNX_FILE} there; make it with `must export`")
        if (metadata := check_onnx(storage.join(config.onnx, ONNX_FILE))) is not None:
            weights_sha256 = metadata.get("weights_sha256", "")
            require_same_model(f"--onnx {config.onnx}", weights_sha256, description, "must export")
    registry.add(version, files, facts)


def roll_back(registry: Registry, to: str) -> Latest:
    """Makes the champion before, or the earlier champion `to`, the champion again. The same command again changes
    nothing: after a rollback only `to` goes further back. A champion that `must serve` can serve is not replaced by one
    that it cannot."""
    latest = registry.latest()
    if latest.version and (to == latest.version or (not to and latest.reason.startswith(ROLLED_BACK))):
        further = "" if to or not latest.previous else f"; further back: --to {latest.previous[-1]}"
        logger.info(f"{registry.uri}: LATEST is {latest.version} already ({latest.reason}){further}")
        return latest
    require_model(registry, bool(latest.version or registry.versions()))
    if to and to not in latest.previous:
        again = f"; to promote it again: {registry.make_command(to)}" if registry.has(to) else ""
        earlier = ", ".join(latest.previous) or "none"
        raise UserError(f"--to {to}: was no champion before {latest.version}; earlier ones: {earlier}{again}")
    require(bool(latest.previous), f"{registry.uri}: no earlier champion to go back to")
    target, is_served = to or latest.previous[-1], False
    with suppress(UserError):  # a damaged champion is replaced by any
        is_served = registry.is_servable(latest.version)
    fits = registry.is_servable if is_served else registry.has
    if not fits(target):
        lack = "`must serve` cannot serve it: it has no ONNX file" if registry.has(target) else "it was deleted"
        others = ", ".join(version for version in dict.fromkeys(reversed(latest.previous)) if fits(version))
        choice = f"choose another with --to: {others}" if others else "there is no other one to go back to"
        raise UserError(f"{registry.make_uri(target)}: {lack}; {choice}")
    moved = registry.set_champion(target, f"{ROLLED_BACK} {latest.version}", latest.version, back=True)
    logger.info(f"{registry.uri}: LATEST is {target} again (before: {latest.version})")
    if not registry.is_servable(target):
        logger.warning(f"{registry.uri}: without an ONNX file `must serve` cannot serve {target}")
    return moved


def print_champion(registry: Registry) -> Latest:
    versions, latest = registry.versions(), registry.latest()
    for version in versions:
        top1 = ((version.get("metrics") or {}).get("adapted") or {}).get("top1")
        columns = [version["version"], version["created"], "-" if top1 is None else f"{top1:.1%}", version["backbone"]]
        logger.info(make_printable("  ".join([*columns, *["LATEST"] * (version["version"] == latest.version)])))
    require_model(registry, bool(versions or latest.version))
    if not latest.version:
        logger.info(f"{registry.uri}: no champion yet")
    return latest


def require_model(registry: Registry, exists: bool) -> None:
    require(exists, f"{registry.uri}: holds no model of this name; check --registry and --name")


def make_version_name(description: Description) -> str:
    """The data's revision and the weights."""
    return f"r{description.provenance.index_revision or 0:04d}-{description.weights_sha256[:12]}"
