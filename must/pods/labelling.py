"""The stages of the pipeline `must-label`: the model that labels, then the parts of a table of labels."""

import os
import re
from collections import Counter
from contextlib import ExitStack
from typing import Any

from must.api.run import run
from must.base import storage
from must.base.errors import UserError
from must.base.lock import RUN_ID
from must.base.parameters import require
from must.config.work import DESCRIPTION_FILE, ONNX_FILE, Workspace
from must.data.sources.files import ListingReport
from must.pods.check import check_labelling, check_writable, make_labelling_settings
from must.pods.notes import Facts, make_part_name
from must.pods.summary import describe_labels, write_good_page
from must.prediction.images import find_images, find_part_file, find_parts_folder, require_images, require_same_parts
from must.prediction.writer import read_table
from must.registry.promote import Registry

ADDRESS_FILE = "model.txt"  # beside the notes: the address of the model that labels in all parts
MOST_REASONS = 8  # why images cannot be read, that are reported one by one


def model(
    facts: Facts, work_uri: str, *, kind: str, parts: int, source: str, output: str, model: str = "",
    model_name: str = "model", registry_uri: str = "", settings: dict[str, Any] | None = None,
) -> dict[str, str]:  # fmt: skip
    """Chooses the model that labels in all parts: `model`, or the champion of the registry; and refuses, before their
    pods are started, what each of them would refuse.

    Args:
        kind: onnx, or bundle for torch on a GPU.
        parts: number of the parts.

    Returns:
        address: of the model."""
    given = {"source": source, "output": output, "work_uri": work_uri, "model_name": model_name}
    check_labelling(given | {"settings": settings or {}})
    check_writable("output", find_parts_folder(output))
    require_same_parts(output, f"{parts}/{parts}")
    require_images([source])
    with ExitStack() as stack:
        problems = list[str]()
        report = ListingReport(lambda name, why: problems.append(f"{name}: {why}"))
        found = next(find_images([source], report, stack), None)
        require(found is not None, f"source {problems[0] if problems else f'{source}: no images in there'}")
    if not model:
        registry = Registry(Workspace(work_uri).registry(registry_uri), model_name)
        version = registry.latest().version
        require(bool(version), f"{registry.uri}: has no champion yet; run the pipeline `must`, or give model")
        model = storage.join(registry.make_uri(str(version)), kind)
    places = [*(storage.join(model, file) for file in (DESCRIPTION_FILE, ONNX_FILE)), model]
    there = any(map(storage.exists, places))
    require(there, f"model {model}: is not there; give the folder of a bundle, or of an ONNX file")
    storage.write_bytes(find_address(work_uri), model.encode())
    facts.result = model
    return {"address": model}


def find_address(work_uri: str) -> str:
    """The file in which the address of the model is. An output cannot reach a loop's tasks in kfp's local runner
    (2.17), which gives them the loop's item in its place."""
    return storage.join(Workspace(work_uri).notes(os.environ.get(RUN_ID, "")), ADDRESS_FILE)


def label(
    facts: Facts, work_uri: str, *, part: str, source: str, output: str, only_new: bool = False,
    least_similarity: float = 0.5, settings: dict[str, Any] | None = None,
) -> None:  # fmt: skip
    """Labels the images of this part that have no row yet; those of another model again, unless `only_new`.

    Args:
        part: I/N, such as 1/4.
        least_similarity: images below it are counted in the summary.

    Raises UserError: the stage model has left no address; TransientError: the store does not answer."""
    file = find_address(work_uri)
    try:
        model = storage.read_bytes(file).decode()
    except FileNotFoundError:
        raise UserError(f"{file}: is missing; the stage model writes it") from None
    others = {"known": output} if only_new else {"relabel": True}
    values = make_labelling_settings(settings or {}, {"images": [source], "output": output, "model": model})
    counts = run("predict", part=part, **others, **values)
    rows = Counter({"new": counts["images"]})
    for row in read_table(find_part_file(output, part)):
        rows["images"] += 1
        if row.get("error"):
            rows[f"not read: {re.sub('[0-9]+', 'N', row['error'])}"] += 1
        elif str(row["abstained"]) in ("True", "1"):
            rows["without a class"] += 1
        similarity = row.get("similarity")
        rows[f"similarity below {least_similarity:g}"] += (
            similarity not in (None, "") and float(similarity) < least_similarity
        )
    reasons = [kind for kind, _ in rows.most_common() if kind.startswith("not read")]
    for kind in reasons[MOST_REASONS:]:
        rows["not read: other reasons"] += rows.pop(kind)
    facts.rows = dict(rows)
    facts.result = describe_labels(rows)
    write_good_page(work_uri, os.environ.get(RUN_ID, ""), (make_part_name("label", part), facts))
