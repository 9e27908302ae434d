"""Opens the source that a URI names."""

import os

from must.base import storage
from must.base.parameters import require
from must.data.sources.base import ARCHIVE, Source, below
from must.data.sources.columns import Asked
from must.data.sources.files import Folder, Manifest
from must.data.sources.table_files import TABLE


def open_source(
    uri: str, labels: str, option: str, exclude: str = "", image_column: str = "", label_column: str = ""
) -> Source:
    """The source at `uri`.

    Args:
        labels: "folder", "csv" or "none", as `must shard --labels`.
        option: the flag it was given with, for messages.
        exclude: a folder inside that is not listed: the output.
        image_column, label_column: names of a table's columns; "" for the usual names.

    Raises:
        ValueError: there is nothing, or nothing of a known kind.
    """
    from must.data.sources.archives import open_archives  # it needs this module
    from must.data.sources.tables import open_tables

    if uri.lower().endswith((".csv", ".tsv", ".jsonl", ".ndjson")):
        require(storage.exists(uri), f"{option} {uri}: there is no such file")
        require(storage.is_remote(uri) or storage.local(uri).is_file(), f"{option} {uri}: not a file")
        return Manifest(uri, labels, option)
    is_file = bool(ARCHIVE.search(uri) or TABLE.search(uri))
    several = "{" in uri and is_file
    if not storage.is_remote(uri) and not several:
        path = storage.local(uri)
        require(path.exists(), f"{option} {uri}: there is no such folder or file")
        require(os.access(path, os.R_OK), f"{option} {uri}: no permission to read it")
        require(
            path.is_dir() or (path.is_file() and is_file),
            f"{option} {uri}: expected a folder of images, a .csv or .jsonl manifest, a .tar or .zip archive, or a "
            ".parquet table",
        )
    inside = below(uri, exclude)
    archives = None if TABLE.search(uri) else open_archives(uri, labels, option, inside)
    columns = Asked(image_column, label_column)
    return archives or open_tables(uri, labels, option, inside, columns) or Folder(uri, labels, exclude)
