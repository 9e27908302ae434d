"""Sharding by several programs. Part I of N packs the files whose names' hash modulo N is I - 1, as a run in a folder
of its own, `.shard-parts/I-of-N`, and needs no other part. `must shard` without `--part` then makes the shards of the
chunks of all parts, as if they were its own.
"""

import json
import logging
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import chain
from typing import Any

from must.base import storage
from must.base.errors import UserError
from must.base.parameters import make_record, require
from must.config import ShardConfig
from must.config.defaults import parse_part
from must.data.shards.commit import Task
from must.data.shards.history import source_place
from must.data.shards.listing import Listing, settings_json
from must.data.shards.workdir import PARTS_FOLDER, WORK_FOLDER, Run, Workdir

logger = logging.getLogger(__name__)

DONE_FILE = "done.json"


def work_root(config: ShardConfig) -> str:
    """The folder with the lock and the work of this program: the output, or that of a part."""
    number, parts = parse_part(config.part)
    return config.output if parts == 1 else part_folder(config.output, number, parts)


def part_folder(output: str, number: int, parts: int) -> str:
    return storage.join(output, PARTS_FOLDER, f"{number}-of-{parts}")


@dataclass(frozen=True)
class Part:
    """A finished part: its run, the numbers of its chunks, and what it has listed."""

    run: dict[str, Any]
    numbers: list[int]
    listing: Listing


def finish_part(task: Task, work: Workdir) -> None:
    """Notes that all chunks of this part are done."""
    part = Part(asdict(task.run), task.numbers, replace(task.listing, plans=()))
    storage.write_bytes(storage.join(work.uri, DONE_FILE), json.dumps(asdict(part)).encode())
    files = f"{task.listing.items} files"
    logger.info(f"part {task.config.part} is done: {files}; `must shard` without --part makes the shards")


def finished_parts(config: ShardConfig, previous: str) -> list[Part]:
    """The parts of a run that adds to the index with the sha256 `previous`; [] if there was no such run."""
    folder = storage.join(config.output, PARTS_FOLDER)
    parts: dict[int, dict[int, Part]] = {}
    for entry in list(storage.list_existing(folder)):
        name, *inside = entry.name.split("/")
        position, _, total = name.partition("-of-")
        if not (position.isdecimal() and total.isdecimal() and inside[:1] == [WORK_FOLDER]):  # such as a free lock
            continue
        of_count = parts.setdefault(int(total), {})
        if inside[1:] == [DONE_FILE]:
            path = storage.join(folder, entry.name)
            damage = UserError(f"{path} is damaged; delete its folder and run that part again")
            of_count[int(position)] = storage.read_object(path, partial(make_record, Part), damage)
    done = list(chain.from_iterable(of_count.values() for of_count in parts.values()))
    if any(part.run["previous"] != previous for part in done):
        logger.info(f"{folder}: deleted, it is the work of an earlier run")
        storage.delete_folder(folder)
        return []
    if not parts:
        return []
    count = min(parts, key=lambda count: count - len(parts[count]))
    missing = [f"{number}/{count}" for number in range(1, count + 1) if number not in parts[count]]
    require(
        not missing,
        f"{folder} has parts of this work, and these are not done: --part {', '.join(missing)}; run them, or delete "
        "that folder to do all without parts",
    )
    for number, part in parts[count].items():
        differences = find_run(config, previous, "").differences(part.run | {"listing": ""})
        require(
            not differences,
            f"part {number}/{count} in {folder} differs in: {', '.join(differences)}; run it again with the parameters "
            "of this command, or delete that folder",
        )
    return [parts[count][number] for number in range(1, count + 1)]


def find_run(config: ShardConfig, previous: str, listing: str) -> Run:
    test = source_place(config.test_source) if config.test_source else ""
    return Run(source_place(config.source), test, settings_json(config), previous, listing)


def join_listings(parts: Iterable[Part]) -> Listing:
    """The listing of all files of the parts."""
    first, *others = [part.listing for part in parts]
    return replace(
        first,
        items=first.items + sum(listing.items for listing in others),
        shares=tuple(map(sum, zip(first.shares, *(listing.shares for listing in others), strict=True))),
        rejected=tuple(chain(first.rejected, *(listing.rejected for listing in others))),
    )
