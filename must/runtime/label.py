"""The stages of the pipeline `must-label`: which model labels, and one part of the images."""

import os
import re
from collections import Counter
from typing import Any

from must.api.stages import call
from must.base import storage
from must.base.lock import RUN_ID
from must.base.parameters import require
from must.deploy.predict.parts import part_file
from must.deploy.predict.writer import read_table
from must.deploy.promote import Registry
from must.runtime.check import labelling_settings
from must.runtime.notes import Facts, WorkUri, read_note
from must.runtime.summary import describe_labels

MOST_REASONS = 8  # why images cannot be read, that are reported one by one


def choose_model(facts: Facts, work_uri: str, *, kind: str, model: str, model_name: str, registry_uri: str) -> None:
    """Notes the URI of `model`, or of the champion's ONNX file or bundle (`kind`)."""
    if not model:
        registry = Registry(WorkUri(work_uri).registry(registry_uri), model_name)
        version = registry.latest().version
        require(bool(version), f"{registry.uri}: has no champion yet; run the pipeline `must`, or give model")
        model = storage.join(registry.make_uri(str(version)), kind)
    facts.result = model


def label(
    facts: Facts, work_uri: str, *, part: str, source: str, output: str, only_new: bool, least_similarity: float,
    settings: dict[str, Any],
) -> None:  # fmt: skip
    """Labels the images of this part that have no row yet; those of another model again, unless `only_new`.

    The model is that of the note: in a loop kfp's local runner (2.17) takes the item for any other task's output."""
    chosen = read_note(work_uri, os.environ.get(RUN_ID, ""), "model")
    require(chosen is not None, f"{work_uri}: the note of the stage model cannot be read")
    model = chosen.facts.result if chosen else ""
    others = {"known": output} if only_new else {"relabel": True}
    values = labelling_settings(settings, {"images": [source], "output": output, "model": model})
    counts = call("predict", part=part, **others, **values)
    rows = Counter({"new": counts["images"]})
    for row in read_table(part_file(output, part)):
        rows["images"] += 1
        if row.get("error"):
            rows[f"not read: {re.sub('[0-9]+', 'N', row['error'])}"] += 1
        elif str(row["abstained"]) in ("True", "1"):
            rows["none of the classes"] += 1
        similarity = row.get("similarity")
        rows[f"similarity below {least_similarity:g}"] += (
            similarity not in (None, "") and float(similarity) < least_similarity
        )
    reasons = [kind for kind, _ in rows.most_common() if kind.startswith("not read")]
    for kind in reasons[MOST_REASONS:]:
        rows["not read: other reasons"] += rows.pop(kind)
    facts.rows = dict(rows)
    facts.result = describe_labels(rows)
