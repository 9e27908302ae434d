"""`must promote`: adds a model to the registry as a version and the champion; or rolls back to an earlier champion."""

import logging
import shlex
from contextlib import suppress
from dataclasses import asdict
from typing import Any

from must.base import storage
from must.base.errors import UserError
from must.base.files import DESCRIPTION_FILE, ONNX_FILE, WEIGHTS_FILE
from must.base.names import listed, require_no_links
from must.base.parameters import require
from must.base.text import brief, printable
from must.config import PromoteConfig
from must.config.work import find_work
from must.deploy.predict.session import check_onnx
from must.deploy.promote.registry import BUNDLE_FOLDER, ONNX_FOLDER, Latest, Registry
from must.evaluation.gate import NOTHING_KEPT, read_decision
from must.evaluation.result import read_metrics
from must.method.model.description import Description, load_description, require_same_model, require_weights

logger = logging.getLogger(__name__)

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
    version = config.version or version_name(config.model, description)
    current = registry.latest().version
    require(
        not decision or decision.outcome != NOTHING_KEPT or not current or current == version,
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
    expected = {"": None, "none": ""}.get(config.champion, config.champion)
    require_onnx(registry, config, version, current)
    if not config.version and expected not in (None, current) and current == version:
        logger.info(f"{registry.uri}: LATEST is this model, {current}: another run with the same data promoted it")
    else:
        store(registry, config, description, version, facts)
    latest = registry.set_champion(version, "promoted", expected)
    before = latest.previous[-1] if latest.previous else "nothing"
    state = "already" if version == current else f"now (before: {before})"
    logger.info(f"{registry.uri}: LATEST is {version} {state} -> {registry.make_uri(version)}")
    if not registry.is_servable(version):
        lack = f"without an ONNX file `must serve` cannot serve {version}"
        logger.warning(f"{registry.uri}: {lack}: {advise_export(config)}")
    return latest


def require_onnx(registry: Registry, config: PromoteConfig, version: str, current: str) -> None:
    """A champion that `must serve` can serve is not replaced by a model without an ONNX file."""
    require(
        bool(config.onnx) or not registry.is_servable(current) or registry.is_servable(version),
        f"{registry.uri}: `must serve` can serve the champion, {current}, and not this model, which has no ONNX file: "
        f"{advise_export(config)}",
    )


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
        names = [name for name in listed(config.onnx) if not any(part.startswith(".") for part in name.split("/"))]
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
        registry_uri, _, name = registry.uri.rpartition("/")
        flags = ["--model", registry.bundle(to), "--version", to, "--registry", registry_uri, "--name", name]
        again = f"; to promote it again: {shlex.join(['must', 'promote', *flags])}" if registry.has(to) else ""
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
        logger.info(printable("  ".join([*columns, *["LATEST"] * (version["version"] == latest.version)])))
    require_model(registry, bool(versions or latest.version))
    if not latest.version:
        logger.info(f"{registry.uri}: no champion yet")
    return latest


def require_model(registry: Registry, exists: bool) -> None:
    require(exists, f"{registry.uri}: holds no model of this name; check --registry and --name")


def version_name(model: str, description: Description) -> str:
    """The data's revision and the weights."""
    revision = description.provenance.index_revision or 0
    require(
        0 <= revision < 10**9,
        f"--model {model}: its index_revision, {brief(revision)}, is no whole number from 0; name it with --version",
    )
    return f"r{revision:04d}-{description.weights_sha256[:12]}"
