"""What a name or a checksum from outside may be before it becomes part of a path here.

An index, and the listing of a bucket, may have been written by anybody who may write to that place. An object may be
called `../../.profile` or `/etc/passwd`, and joining such a name to a folder leads out of it.
"""

import os
import re
from pathlib import Path

from must.base import storage
from must.base.errors import UserError
from must.base.parameters import require
from must.base.text import brief

SHARD = re.compile(r"[^\W\d]\w*-[0-9]{6,12}\.tar")  # of any split; its table of offsets ends with .npy
TABLE = re.compile(r"(names|contents)-[0-9]{4,12}\.npy")
SHA256 = re.compile(r"[0-9a-f]{64}")


def below(name: object, where: str) -> str:
    """`name`, if it stays below any folder that it is joined to; "/" may separate folders.

    Raises:
        ValueError: it is absolute or no text, or has an empty part, '.', '..' or a NUL; says so of `where`.
    """
    if isinstance(name, str) and "\0" not in name and not {"", ".", ".."} & set(name.split("/")):
        return name
    raise UserError(f"{where}: the name {brief(name)} leads out of its folder; it may not have been written by must")


def listed(uri: str) -> list[str]:
    """The names of the files below `uri`, to be copied to a place of ours.

    Raises:
        ValueError: one of them leads out of it; nothing should be copied then.
        FileNotFoundError, NotADirectoryError: there is no such local folder.
    """
    return sorted(below(entry.name, uri) for entry in storage.list_files(uri))


def require_no_links(uri: str, flag: str) -> None:
    """Raises ValueError: there is a link below the local folder `uri`: what it leads to may be nobody's to publish."""
    if storage.is_remote(uri):
        return
    root = storage.local(uri)
    for place, folders, files in os.walk(root):
        for path in (Path(place, name) for name in (*folders, *files)):
            inside = brief(str(path.relative_to(root)))
            require(not path.is_symlink(), f"{flag} {uri}: {inside} is a link; put the file itself there")


def of_form(pattern: re.Pattern[str], value: object, what: str) -> str:
    """`value`, if all of it matches. Raises ValueError: it does not; `what` it should have been."""
    require(isinstance(value, str) and pattern.fullmatch(value) is not None, f"{brief(value)} is not a {what}")
    assert isinstance(value, str)
    return value
