"""One interface for local paths and buckets (gs://, s3://, az://). A written file is either complete or absent."""

from must.base.errors import TransientError
from must.base.storage.api import (
    copy,
    delete,
    delete_folder,
    download,
    exists,
    generation,
    is_remote,
    join,
    list_existing,
    list_files,
    local_copy,
    move,
    object_or_none,
    open_write,
    parse_object,
    read_bytes,
    read_json,
    read_object,
    read_versioned,
    remote,
    size,
    upload,
    write_bytes,
)
from must.base.storage.disk import (
    TEMPORARY,
    HashingFile,
    disk_errors,
    local,
    remove_leftovers,
    sha256_of,
    start_writing,
    umask,
)
from must.base.storage.retry import UnreachableError, is_transient, repeat, wait_for_credentials
from must.base.storage.store import ConflictError, Entry, Generation, Writable

__all__ = [
    "TEMPORARY", "ConflictError", "Entry", "Generation", "HashingFile", "TransientError", "UnreachableError",
    "Writable", "copy", "delete", "delete_folder", "disk_errors", "download", "exists", "generation", "is_remote",
    "is_transient", "join", "list_existing", "list_files", "local", "local_copy", "move", "object_or_none",
    "open_write", "parse_object", "read_bytes", "read_json", "read_object", "read_versioned", "remote",
    "remove_leftovers", "repeat", "sha256_of", "size", "start_writing", "umask", "upload", "wait_for_credentials",
    "write_bytes",
]  # fmt: skip
