"""The pipeline's stages, one function each. Each runs in its own process (supervise.py).

A component passes the function itself to `supervised`, so that a type checker can check the arguments. They raise the
library's exceptions. A stage without special facts for its note needs no function here: `library` runs it.
"""

import logging
import os
from dataclasses import dataclass
from functools import partial
from typing import Any

from must.api.stages import call
from must.base import storage
from must.base.files import INDEX_FILE, METRICS_FILE
from must.base.lock import RUN_ID
from must.config.part import parts_of
from must.data.format.index import Index, load_index
from must.deploy.promote.promote import Champion
from must.deploy.promote.promote import champion as ask_registry
from must.runtime import answers
from must.runtime.check import sharding_settings, training_settings
from must.runtime.classifiers import classifier
from must.runtime.decision import gate, model_facts, promote
from must.runtime.evaluation import evaluate
from must.runtime.inputs import check_inputs
from must.runtime.notes import Facts, read_notes, stage_note
from must.runtime.places import WorkUri
from must.runtime.training import train


def part_name(stage: str, part: str) -> str:
    """The name of the note of part I/N of a stage."""
    return f"{stage}-{part.replace('/', '-of-')}"


def follow_ups(labelling_pods: int, serve: str) -> list[str]:
    """The names of the notes of the stages after a promotion."""
    parts = [part_name("predict", part) for part in parts_of(labelling_pods)]
    return parts + ["serve"] * (serve != "none")


def shard_part(
    work_uri: str, *, part: str, source: str, test_source: str, labels: str, split: str, append: bool,
    settings: dict[str, Any],
) -> None:  # fmt: skip
    """Does one part of sharding. If this part made the index, its note contains the index's sha256."""
    run_id = os.environ.get(RUN_ID, "")
    inputs = {"source": source, "test_source": test_source, "labels": labels, "split": split, "append": append}
    values = sharding_settings(settings, inputs | {"output": WorkUri(work_uri).shards})
    with stage_note(work_uri, part_name("shard", part)) as note:
        index = call("shard", **values, part=part, run_id=run_id)
        note.result = "done; other parts have work left or make the shards"
        if index is not None:
            note.result = f"the shards are there, revision {index.revision}"
            note.facts = Facts(index_sha256=index.sha256)


def made_by_parts(work_uri: str, shards: str) -> Index | None:
    """The index, if a part of this run made it: then the source need not be listed again."""
    hashes = {note.facts.index_sha256 for note in read_notes(work_uri, os.environ.get(RUN_ID, ""))} - {""}
    if not hashes or not storage.exists(storage.join(shards, INDEX_FILE)):
        return None
    index = load_index(shards)
    return index if index.sha256 in hashes else None


__all__ = [
    "champion", "classifier", "evaluate", "export", "gate", "inputs", "library", "predict", "promote", "review",
    "shard", "shard_part", "train",
]  # fmt: skip
logger = logging.getLogger(__name__)


def library(work_uri: str, *, stage: str, values: dict[str, Any], part: str = "") -> None:
    """Runs the library's stage of that name; the stage itself checks its parameters `values`.

    The note's result lists the numbers that the stage returns.
    """
    with stage_note(work_uri, part_name(stage, part) if part else stage) as note:
        result = call(stage, **values)
        numbers = result.items() if isinstance(result, dict) else ()
        note.result = ", ".join(f"{name} {value:,}" for name, value in numbers if isinstance(value, int | float))


def inputs(work_uri: str, *, parameters: dict[str, Any]) -> str:
    """Checks the run's `parameters`; returns a sha256 of the contents of class file and model."""
    with stage_note(work_uri, "inputs") as note:
        result = check_inputs(parameters, work_uri)
        note.result = "as the stages take them"
    return result


@dataclass(frozen=True)
class Sharded:
    """The index's sha256, the shards' URI, the index's revision, and the number of images."""

    sha256: str
    shards: str
    revision: int
    images: int


def shard(
    work_uri: str, *, index: str, source: str, test_source: str, labels: str, split: str, append: bool,
    settings: dict[str, Any],
) -> Sharded:  # fmt: skip
    """Makes the shards. After parallel parts it does only the remaining work, none if a part has made the index."""
    uri = WorkUri(work_uri).shards
    inputs = {"source": source, "test_source": test_source, "labels": labels, "split": split, "append": append}
    with stage_note(work_uri, "shard") as note:
        result = made_by_parts(work_uri, uri) or call("shard", **sharding_settings(settings, inputs | {"output": uri}))
        count = sum(shard.samples for shard in result.shards)
        note.result = f"{count:,} images, revision {result.revision}"
        storage.write_bytes(index, storage.read_bytes(storage.join(uri, INDEX_FILE)))
    return Sharded(result.sha256, uri, result.revision, count)


def champion(
    work_uri: str, *, registry_uri: str, name: str, index_sha256: str, classifier: str, preset: str,
    settings: dict[str, Any], epochs: int, only_new: bool,
) -> Champion:  # fmt: skip
    with stage_note(work_uri, "champion") as note:
        best = ask_registry(
            WorkUri(work_uri).registry(registry_uri), name, index_sha256, classifier,
            training_settings(settings, preset, epochs), only_new,
            answered=partial(answers.has_new_answers, work_uri),
        )  # fmt: skip
        note.result = "; ".join(best.reasons)
        note.facts = Facts(action=best.action, why=best.reasons[-1].removeprefix("nothing new: "))
        logger.info(note.result)
    return best


def review(work_uri: str, *, key: str, bundle: str, classifier: str, output: str, link: str = "") -> dict[str, Any]:
    """Writes the page with questions; returns its folder and number of pictures. `link`: its URL at Kubeflow's page."""
    with stage_note(work_uri, "review") as note:
        page = answers.write_page(work_uri, key=key, bundle=bundle, classifier=classifier, output=output)
        note.result = f"{page['pictures']:,} pictures on the page. {page['text']}"
        note.facts = Facts(page=storage.join(page["place"], answers.PAGE), page_link=link, **page)
    return page


def export(
    work_uri: str, *, index_sha256: str, bundle: str, details: str, onnx: str, precision: str, embeddings: bool
) -> dict[str, Any]:
    """Returns the metadata of the ONNX artifact."""
    with stage_note(work_uri, "export") as note:
        call(
            "export", model=bundle, output=onnx, precision=precision, embeddings=embeddings, index_sha256=index_sha256,
            shards=WorkUri(work_uri).shards, metrics=storage.join(details, METRICS_FILE),
        )  # fmt: skip
        note.result = f"ONNX, {precision}" + (", with embeddings" if embeddings else "")
    return {"precision": precision, "framework": "onnx", **model_facts(bundle, details)}


def predict(
    work_uri: str, *, part: str, index_sha256: str, onnx: str, output: str, settings: dict[str, Any]
) -> None:  # fmt: skip
    """`settings`: other parameters of `must predict`."""
    inputs = {"model": onnx, "shards": WorkUri(work_uri).shards, "index_sha256": index_sha256, "output": output}
    library(work_uri, stage="predict", values={**settings, **inputs, "part": part}, part=part)
