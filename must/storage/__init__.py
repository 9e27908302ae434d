"""Local paths and gs:// URIs behind one small interface: what is written is complete or absent.

Ground floor: imports no other room. `gcs` is imported when the first gs:// URI is met, for its client is optional.
"""

from must.storage.api import (
    TEMPORARY,
    copy,
    delete,
    delete_folder,
    disk_errors,
    download,
    exists,
    generation,
    is_remote,
    join,
    list_files,
    local,
    move,
    open_write,
    read_bytes,
    read_json,
    remote,
    size,
    upload,
    write_bytes,
)
from must.storage.base import ConflictError, Entry, LaterError, UnreachableError, Writable

__all__ = [
    "TEMPORARY",
    "ConflictError",
    "Entry",
    "LaterError",
    "UnreachableError",
    "Writable",
    "copy",
    "delete",
    "delete_folder",
    "disk_errors",
    "download",
    "exists",
    "generation",
    "is_remote",
    "join",
    "list_files",
    "local",
    "move",
    "open_write",
    "read_bytes",
    "read_json",
    "remote",
    "size",
    "upload",
    "write_bytes",
]
