"""Sharding by several pods. What one of them has done the others know from the bucket alone. (Labelling by several is
`must predict --part`, must/deploy/predict/shards.py.)"""

import os
from typing import Any

from must.api.stages import call
from must.base import storage
from must.base.files import INDEX_FILE
from must.base.lock import RUN_ID
from must.config.part import parts_of
from must.data.format.index import Index, load_index
from must.runtime.check import sharding_settings
from must.runtime.notes import Facts, read_notes, stage_note
from must.runtime.places import WorkUri


def part_name(stage: str, part: str) -> str:
    """A note's name for the part I/N of a stage."""
    return f"{stage}-{part.replace('/', '-of-')}"


def follow_ups(labelling_pods: int, serve: str) -> list[str]:
    """Names of the notes that a promotion is followed by."""
    parts = [part_name("predict", part) for part in parts_of(labelling_pods)]
    return parts + ["serve"] * (serve != "none")


def shard_part(
    work_uri: str, *, part: str, source: str, test_source: str, labels: str, split: str, append: bool,
    settings: dict[str, Any],
) -> None:  # fmt: skip
    """What it has done is in the output; its note tells of the index, if it has made that."""
    run = os.environ.get(RUN_ID, "")
    own = {"source": source, "test_source": test_source, "labels": labels, "split": split, "append": append}
    values = sharding_settings(settings, own | {"output": WorkUri(work_uri).shards})
    with stage_note(work_uri, part_name("shard", part)) as note:
        index = call("shard", **values, part=part, run_id=run)
        note.result = "done; other parts have work left or make the shards"
        if index is not None:
            note.result, note.facts = (
                f"the shards are there, revision {index.revision}",
                Facts(index_sha256=index.sha256),
            )


def made_by_parts(work_uri: str, shards: str) -> Index | None:
    """The index that a part of this very run has made: the source is not listed once more."""
    made = {note.facts.index_sha256 for note in read_notes(work_uri, os.environ.get(RUN_ID, ""))} - {""}
    if not made or not storage.exists(storage.join(shards, INDEX_FILE)):
        return None
    index = load_index(shards)
    return index if index.sha256 in made else None
