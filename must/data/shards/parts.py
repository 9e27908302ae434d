"""Several programs that shard one source: each reads and checks its part of the chunks; the last one makes the shards.

There is no scheduler: what is done is known from the records in the output, and what waits for others is not this
program's to wait for. A lock a part keeps two programs from doing the same part at once.
"""

import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress

from must.base import storage
from must.base.lock import Kind, locked
from must.data.shards.workdir import LOCKS

LOCK = re.compile(r"([1-9]\d{0,8}-of-[1-9]\d{0,8})\.lock")
WATCHED = 16  # locks of parts whose owners' life is waited for at the same time


def kind_of(name: str) -> Kind:
    """The lock of the part `name`, I-of-N."""
    return Kind(f"must shard --part {name.replace('-of-', '/')}", "--output", f"{LOCKS}/{name}.lock")


@contextmanager
def locked_part(output: str, number: int, parts: int) -> Iterator[Callable[[], None]]:
    """Holds the lock of a part; as must.base.lock.locked."""
    try:
        with locked(output, kind_of(f"{number}-of-{parts}")) as still_ours:
            yield still_ours
    finally:
        remove_folder(output)


def refuse_living_parts(output: str) -> None:
    """Raises HeldError: a part is at work there. The locks of dead ones are removed."""
    try:
        found = [LOCK.fullmatch(entry.name) for entry in storage.list_files(storage.join(output, LOCKS))]
    except FileNotFoundError:
        return
    with ThreadPoolExecutor(WATCHED) as pool:
        list(pool.map(lambda match: take(output, match[1]), filter(None, found)))
    remove_folder(output)


def take(output: str, name: str) -> None:
    with locked(output, kind_of(name)):
        pass


def remove_folder(output: str) -> None:
    if not storage.is_remote(output):
        with suppress(OSError):  # other parts are at work
            storage.local(storage.join(output, LOCKS)).rmdir()
