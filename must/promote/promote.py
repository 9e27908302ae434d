"""`must promote`: a model becomes a version of the registry and its champion; or an earlier champion comes back."""

from __future__ import annotations

import hashlib
from typing import Any

from must import storage
from must.config import PromoteConfig
from must.model.bundle import DESCRIPTION_FILE, WEIGHTS_FILE, load_description
from must.names import listed
from must.parameters import require
from must.promote.registry import Latest, Registry
from must.storage import read_json
from must.text import printable


def promote(config: PromoteConfig) -> Latest:
    """The stage. Returns what LATEST says afterwards.

    Raises:
        ValueError: no model there, the gate stopped it, another champion than the one it was compared with, or nothing
            to go back to.
    """
    registry = Registry(config.registry, config.name)
    if config.list:
        return show(registry)
    if config.rollback:
        return roll_back(registry, config.to)
    return put(registry, config)


def put(registry: Registry, config: PromoteConfig) -> Latest:
    description = load_description(config.model)
    decision = read_json(config.decision, "--decision") if config.decision else None
    require(
        decision is None or decision["passed"],
        f"--decision {config.decision}: the gate stopped this model; promote without --decision to overrule it",
    )
    require(
        not decision or decision.get("outcome") != "zero-shot" or not registry.latest().version,
        f"--decision {config.decision}: nothing was kept of the adaptation, the model is zero-shot's; "
        f"{registry.uri} has a champion, which stays",
    )
    provenance = description.provenance
    version = config.version or version_of(config.model, provenance)
    facts = {
        "backbone": description.backbone,
        "pretrained": description.pretrained,
        "classes": len(description.classes),
        "must_version": description.must_version,
        "champion_before": config.champion,
        "decision": decision,
        "metrics": headline(read_json(config.metrics, "--metrics")) if config.metrics else None,
        **{name: provenance.get(name) for name in ("index_sha256", "index_revision", "git_revision")},
    }
    if not registry.has(version):
        files = {"bundle": [(storage.join(config.model, name), name) for name in (WEIGHTS_FILE, DESCRIPTION_FILE)]}
        if config.onnx:
            files["onnx"] = [(storage.join(config.onnx, name), name) for name in listed(config.onnx)]
        registry.add(version, files, facts)
    expected = {"": None, "none": ""}.get(config.champion, config.champion)
    latest = registry.move(version, "promoted", expected)
    before = latest.previous[-1] if latest.previous else "nothing"
    print(f"{registry.uri}: LATEST is {version} now (before: {before}) -> {registry.place(version)}")
    return latest


def roll_back(registry: Registry, to: str) -> Latest:
    latest = registry.latest()
    require(bool(latest.previous), f"{registry.uri}: no earlier champion to go back to")
    target = to or latest.previous[-1]
    require(
        target in latest.previous,
        f"--to {target}: was no champion before {latest.version}; earlier ones: {', '.join(latest.previous)}",
    )
    require(registry.has(target), f"{registry.place(target)}: the version was deleted; choose another with --to")
    moved = registry.move(target, f"rolled back from {latest.version}", latest.version, back=True)
    print(f"{registry.uri}: LATEST is {target} again (before: {latest.version})")
    return moved


def show(registry: Registry) -> Latest:
    latest = registry.latest()
    for version in registry.versions():
        top1 = ((version["metrics"] or {}).get("adapted") or {}).get("top1")
        score = "      " if top1 is None else f"{top1:6.1%}"
        mark = "LATEST" if version["version"] == latest.version else ""
        line = f"{version['version']}  {version['created']}  {score}  {version['backbone']}  {mark}"
        print(printable(line.rstrip()))
    if not latest.version:
        print(f"{registry.uri}: no champion yet")
    return latest


def version_of(model: str, provenance: dict[str, Any]) -> str:
    weights = storage.read_bytes(storage.join(model, WEIGHTS_FILE))
    return f"r{provenance.get('index_revision', 0):04d}-{hashlib.sha256(weights).hexdigest()[:12]}"


def headline(metrics: dict[str, Any]) -> dict[str, Any]:
    """The figures of metrics.json that are single numbers."""
    return {
        model: {name: value for name, value in (metrics.get(model) or {}).items() if isinstance(value, float)}
        for model in ("baseline", "adapted")
    }
