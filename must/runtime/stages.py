"""What the pipeline's stages do, each in a process of its own (supervise.py): what goes in and out fits into JSON.

They raise as the library does. A stage that has nothing of its own to tell needs no function here: `library` runs it.
"""

import logging
from functools import partial
from typing import Any

from must.api.stages import call
from must.base import storage
from must.base.files import INDEX_FILE, METRICS_FILE, REPORT_FILE
from must.runtime import answers, classifiers, decision, evaluation, fanout
from must.runtime.check import sharding_settings, training_settings
from must.runtime.inputs import check_inputs
from must.runtime.notes import stage_note
from must.runtime.outcome import WAITS
from must.runtime.places import WorkUri

logger = logging.getLogger(__name__)


def library(stage: str, /, work_uri: str, **values: Any) -> None:
    """The library's stage of that name with its own parameters: "must.runtime.stages:library:STAGE".

    The note's line tells the numbers that the stage returns.
    """
    with stage_note(work_uri, stage) as note:
        result = call(stage, **values)
        numbers = result.items() if isinstance(result, dict) else ()
        note.result = ", ".join(f"{name} {value:,}" for name, value in numbers if isinstance(value, int | float))


def inputs(work_uri: str, **values: Any) -> str:
    """Returns a sha256 of what class file and model hold. `values`: the run's parameters."""
    with stage_note(work_uri, "inputs") as note:
        result = check_inputs(values, work_uri)
        note.result = "as the stages take them"
    return result


def shard(work_uri: str, *, index: str, settings: dict[str, Any], **own: Any) -> dict[str, Any]:
    """Returns the index's sha256 and what its artifact tells. `own`: the pipeline's parameters of `must shard`.

    Where parts went before it has nothing to do if one of them has made the index, and else what they have left.
    """
    shards = WorkUri(work_uri).shards
    with stage_note(work_uri, "shard") as note:
        result = fanout.made_by_parts(work_uri, shards)
        result = result or call("shard", **sharding_settings(settings, own | {"output": shards}))
        count = sum(one.samples for one in result.shards)
        note.result = f"{count:,} images, revision {result.revision}"
        storage.write_bytes(index, storage.read_bytes(storage.join(shards, INDEX_FILE)))
    return {"sha256": result.sha256, "facts": {"shards": shards, "revision": result.revision, "images": count}}


def classifier(work_uri: str, **values: str) -> dict[str, Any]:
    """Returns the classifier file's sha256, its number of classes and whether an earlier run had made it.

    `values` are those of classifiers.provide.
    """
    with stage_note(work_uri, "classifier") as note:
        made = classifiers.provide(work_uri, **values)
        note.result = f"{made['classes']} classes" + (", made by an earlier run" if made["kept"] else "")
    return made


def champion(
    work_uri: str, *, registry_uri: str, preset: str, settings: dict[str, Any], epochs: int, **values: Any
) -> dict[str, Any]:
    """Returns must.deploy.promote.champion.Champion as a dictionary; other `values` are those of its maker there."""
    from must.deploy.promote.champion import champion as ask

    with stage_note(work_uri, "champion") as note:
        best = ask(
            WorkUri(work_uri).registry(registry_uri), settings=training_settings(settings, preset, epochs),
            answered=partial(answers.answered_since, work_uri), **values,
        )  # fmt: skip
        note.result = "; ".join(best.reasons)
        note.facts = {"action": best.action, "why": best.reasons[-1].removeprefix("nothing new: ")}
        logger.info(note.result)
    return vars(best)


def evaluate(
    work_uri: str, *, index_sha256: str, bundle: str, classifier: str, split: str, details: str, report: str,
    link: str = "",
) -> dict[str, Any]:  # fmt: skip
    """Evaluates against the zero-shot model; returns the metrics. The report is also copied to `report`, where Kubeflow
    shows it; `link` leads to it on Kubeflow's page."""
    with stage_note(work_uri, "evaluate") as note:
        metrics = call(
            "evaluate", model=bundle, baseline=classifier, shards=WorkUri(work_uri).shards, index_sha256=index_sha256,
            split=split, output=details,
        )  # fmt: skip
        storage.write_bytes(report, storage.read_bytes(storage.join(details, REPORT_FILE)))
        note.result = evaluation.headline(metrics)
        note.facts = evaluation.accuracy(metrics) | {"report": evaluation.keep_report(work_uri, report)}
        note.facts |= {"report_link": link} if link else {}
    return metrics


def gate(work_uri: str, *, registry_uri: str, **values: Any) -> str:
    """Returns promote, ask or stop. `values` are those of decision.decide."""
    with stage_note(work_uri, "gate") as note:
        result, note.facts = decision.decide(work_uri, registry=WorkUri(work_uri).registry(registry_uri), **values)
        note.result = f"{note.facts['outcome']} ({result.gate})"
    return "promote" if result.passed else "ask" if note.facts["outcome"] == WAITS else "stop"


def review(work_uri: str, *, link: str = "", **values: str) -> dict[str, Any]:
    """Returns where the page is and how many pictures it asks about. `values` are those of answers.ask;
    `link` leads to the page beside Kubeflow's."""
    with stage_note(work_uri, "review") as note:
        asked = answers.ask(work_uri, **values)
        note.result = f"{asked['pictures']:,} pictures on the page. {asked['text']}"
        note.facts = {"page": storage.join(asked["place"], answers.PAGE), "page_link": link, **asked}
    return asked


def export(
    work_uri: str, *, bundle: str, details: str, onnx: str, precision: str, embeddings: bool = False, **values: Any
) -> dict[str, Any]:
    """Returns what the ONNX artifact tells of the model; other `values` are parameters of `must export`."""
    with stage_note(work_uri, "export") as note:
        call(
            "export", model=bundle, output=onnx, precision=precision, embeddings=embeddings,
            shards=WorkUri(work_uri).shards, metrics=storage.join(details, METRICS_FILE), **values,
        )  # fmt: skip
        note.result = f"ONNX, {precision}" + (", with embeddings" if embeddings else "")
    return {"precision": precision, "framework": "onnx", **decision.model_facts(bundle, details)}


def promote(work_uri: str, *, registry_uri: str, **values: str) -> dict[str, Any]:
    """Returns where the version is and what it is; `values` are those of decision.promote."""
    with stage_note(work_uri, "promote") as note:
        facts = decision.promote(registry=WorkUri(work_uri).registry(registry_uri), **values)
        note.result, note.facts = f"promoted as {facts['version']}", {"version": facts["version"]}
    return facts
