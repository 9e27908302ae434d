"""The stages gate and promote: the gate compares a model with the zero-shot model and the champion, if there is one."""

import json
import logging
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from must.api.stages import call
from must.base import storage
from must.base.exits import line_of
from must.base.files import METRICS_FILE
from must.base.text import encoded
from must.deploy.promote.promote import version_of
from must.deploy.promote.registry import Latest, Registry, is_of
from must.evaluation.gate import NOTHING_KEPT, Decision, against_champion, as_markdown, read_decision
from must.evaluation.result import read_metrics
from must.method.model.bundle import load_description
from must.runtime.answers import answers_may_decide
from must.runtime.evaluation import accuracy, plain
from must.runtime.lineage import write_lineage
from must.runtime.notes import Facts, stage_note
from must.runtime.outcome import WAITS
from must.runtime.places import WorkUri
from must.runtime.training import origin

logger = logging.getLogger(__name__)

LEFT_TO_PEOPLE = "left to people's answers"  # outcome of a decision that people's answers may still change


def gate(
    work_uri: str, *, bundle: str, details: str, registry_uri: str, model_name: str, key: str, champion: str,
    champion_uri: str, gate: str, settings: dict[str, Any], split: str, decision: str, page: str,
) -> Literal["promote", "ask", "stop"]:  # fmt: skip
    """The stage. If there is a champion, the model is also evaluated against it, and must pass that gate too.

    The champion itself is compared with the zero-shot model only, so that a run that failed after promotion can resume.
    """
    facts, against = Facts(), "the zero-shot model"
    metrics = storage.join(details, METRICS_FILE)
    with stage_note(work_uri, "gate") as note, tempfile.TemporaryDirectory() as folder:
        if champion_uri and is_of(champion, version_of(bundle, load_description(bundle).provenance)):
            logger.info(f"this model is the champion, {champion}: it is compared with the zero-shot model")
            champion_uri, against = "", f"the zero-shot model, because this model is the champion, {champion}"
        if champion_uri and gate != "none":
            index_sha256 = read_metrics(metrics, "metrics").data.index_sha256
            call(
                "evaluate", model=bundle, baseline=champion_uri, shards=WorkUri(work_uri).shards,
                index_sha256=index_sha256, split=split, output=folder,
            )  # fmt: skip
            against = f"the champion, {champion}"
            champion_metrics = f"{folder}/{METRICS_FILE}"
            facts = Facts(against=against, before=accuracy(read_metrics(champion_metrics, "metrics")).get("before"))
            if gate == "labelled":
                metrics = champion_metrics
        result: Decision = call("gate", metrics=metrics, gate=gate, output=decision, **settings)
        if champion_uri and gate in ("label-free", "reviewed"):
            result = against_champion(result, call("gate", metrics=champion_metrics, gate=gate, **settings))
            storage.write_bytes(decision, result.to_json())
        waits = not result.passed and answers_may_decide(bundle, gate)
        hint = "\nPeople's answers may decide: see the stage *review*.\n" if waits else ""
        storage.write_bytes(page, encoded(as_markdown(result, against) + hint))
        if not result.passed:
            registry = Registry(WorkUri(work_uri).registry(registry_uri), model_name)
            registry.decide(key, LEFT_TO_PEOPLE if waits else "stopped", result.reasons)
            logger.info("the model is not promoted; it stays among this run's artifacts")
        outcome = "kept zero-shot" if result.outcome == NOTHING_KEPT else "passed" if result.passed else "stopped"
        note.facts = replace(facts, outcome=WAITS if waits else outcome, reasons=result.reasons)
        note.result = f"{note.facts.outcome} ({result.gate})"
    return "promote" if result.passed else "ask" if waits else "stop"


def promote(
    work_uri: str, *, bundle: str, onnx: str, details: str, decision: str, registry_uri: str, model_name: str, key: str,
    champion: str, register: str, output: str,
) -> dict[str, Any]:  # fmt: skip
    """The stage: promotes the model, records the decision for this data, and writes the version's facts to `output`."""
    uri, metrics = WorkUri(work_uri).registry(registry_uri), storage.join(details, METRICS_FILE)
    with stage_note(work_uri, "promote") as note:
        latest: Latest = call(
            "promote", model=bundle, onnx=onnx, metrics=metrics, decision=decision, registry=uri, name=model_name,
            champion=champion, register=register,
        )  # fmt: skip
        registry = Registry(uri, model_name)
        registry.decide(key, f"promoted as {latest.version}", read_decision(decision).reasons)
        try:
            write_lineage(work_uri, registry, latest.version)
        except (ValueError, OSError) as error:  # only a warning: the model is promoted already
            logger.warning(f"must promote: the version's lineage could not be written: {line_of(error)}")
        facts = {"version": latest.version, "registry": registry.uri_of(latest.version), **model_facts(bundle, details)}
        Path(output).parent.mkdir(parents=True, exist_ok=True)
        Path(output).write_text(json.dumps(facts, indent=1))
        note.result, note.facts = f"promoted as {latest.version}", Facts(version=latest.version)
    return facts


def model_facts(bundle: str, details: str) -> dict[str, Any]:
    """Metadata of a model artifact: accuracy, if there are labels, and the revisions of data and code."""
    metrics = read_metrics(storage.join(details, METRICS_FILE), "metrics")
    return plain(origin(bundle) | {"accuracy": accuracy(metrics).get("top1")})
