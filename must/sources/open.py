"""From a URI to the source that it names."""

from __future__ import annotations

import os

from must import storage
from must.parameters import require
from must.sources.base import ARCHIVE, Source, below
from must.sources.files import Folder, Manifest


def open_source(uri: str, labels: str, option: str, exclude: str = "") -> Source:
    """The source at `uri`.

    Args:
        labels: "folder", "csv" or "none", as `must shard --labels`.
        option: the flag it was given with, for messages.
        exclude: a folder that is not listed though it lies inside: the output.

    Raises:
        ValueError: there is nothing, or nothing of a known kind.
    """
    from must.sources.archives import open_archives  # it needs this module

    if uri.lower().endswith((".csv", ".tsv", ".jsonl", ".ndjson")):
        require(storage.exists(uri), f"{option} {uri}: there is no such file")
        require(storage.is_remote(uri) or storage.local(uri).is_file(), f"{option} {uri}: not a file")
        return Manifest(uri, labels, option)
    several = "{" in uri and bool(ARCHIVE.search(uri))
    if not storage.is_remote(uri) and not several:
        path = storage.local(uri)
        require(path.exists(), f"{option} {uri}: there is no such folder or file")
        require(os.access(path, os.R_OK), f"{option} {uri}: no permission to read it")
        require(
            path.is_dir() or (path.is_file() and bool(ARCHIVE.search(uri))),
            f"{option} {uri}: expected a folder of images, a .csv or .jsonl manifest, or a .tar or .zip archive",
        )
    return open_archives(uri, labels, option, below(uri, exclude)) or Folder(uri, labels, exclude)
