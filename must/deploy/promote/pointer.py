"""A small file that several programs may move at once: read it, decide, write it if no other did meanwhile."""

from __future__ import annotations

import hashlib

from must.base import storage
from must.base.lock import in_turn
from must.base.storage import ConflictError

Token = int | str
"""Stands for the content that was read: an object's generation, or a local file's sha256. 0: there was no file."""


def read(uri: str) -> tuple[bytes | None, Token]:
    """The content, None if there is no file, and the token that `compare_and_swap` wants."""
    if not storage.is_remote(uri):
        data = read_local(uri)
        return data, token_of(data)
    generation = storage.generation(uri)  # before the content: what changes in between is a conflict, which is safe
    if generation is None:
        return None, 0
    return storage.read_bytes(uri), generation


def compare_and_swap(uri: str, data: bytes, token: Token) -> None:
    """Writes `data` if the file is still the one that `token` stands for.

    In a bucket the server compares generations. Locally the comparison and the writing happen under a lock of the
    operating system, which a process that dies lets go.

    Raises:
        ConflictError: another program wrote the file meanwhile.
    """
    if not storage.is_remote(uri):
        path = storage.local(uri)
        with in_turn(path.with_name(f".{path.name}.lock")):
            if token_of(read_local(uri)) != token:
                raise ConflictError(f"{uri} was written by another program")
            storage.write_bytes(uri, data)
        return
    storage.write_bytes(uri, data, if_generation_match=token)


def read_local(uri: str) -> bytes | None:
    try:
        return storage.read_bytes(uri)
    except FileNotFoundError:
        return None


def token_of(data: bytes | None) -> Token:
    return 0 if data is None else hashlib.sha256(data).hexdigest()
