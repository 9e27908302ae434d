"""What index.json may hold. Its names become paths and its numbers sizes of memory, and anybody may have written it."""

from dataclasses import dataclass
from typing import Any

from must.base import storage
from must.base.names import SHA256, SHARD, TABLE, below, of_form
from must.base.parameters import require
from must.base.text import brief

LARGEST_OFFSET = 2**53  # of any number; sums of those in an index stay far from 2^63
MOST_CHUNKS = 2**30  # they are numbered in 32 bits, and --append goes on counting


@dataclass(frozen=True)
class Shard:
    """One tar file and its table of offsets, `<name without .tar>.npy`.

    One that another program has written stays where it is, at `file`: a name below the index's folder, or a whole URI.
    Then `<name without .tar>.jsonl` beside the index holds a line of JSON a sample, as its json member would.
    """

    name: str  # of the tar, relative to the index
    split: str
    samples: int
    bytes: int
    sha256: str  # of the tar
    offsets_sha256: str  # of the .npy
    labelled: int  # samples whose json member has a label
    file: str = ""
    texts_sha256: str = ""  # of the .jsonl

    @property
    def offsets_name(self) -> str:
        return self.name.removesuffix(".tar") + ".npy"

    @property
    def texts_name(self) -> str:
        return self.name.removesuffix(".tar") + ".jsonl"

    def place(self, uri: str) -> str:
        """Where the tar is, of an index in the folder `uri`."""
        return (
            self.file if self.file.startswith("/") or "://" in self.file else storage.join(uri, self.file or self.name)
        )

    @property
    def values(self) -> dict[str, Any]:
        """What index.json says of it."""
        return {name: value for name, value in vars(self).items() if value != ""}


def checked(content: dict[str, Any]) -> dict[str, Any]:
    """The fields of an Index from the content of its file.

    Raises:
        ValueError, KeyError, TypeError, AttributeError: something is missing or is not what `must shard` writes.
    """
    for name in ("revision", "rejected", "duplicates", "dropped", "units"):
        count(content.get(name, 0), name)
    require(content.get("units", 0) < MOST_CHUNKS, f"units must be below {MOST_CHUNKS}")
    for name in ("uri", "fingerprint"):
        require(isinstance(content["source"][name], str), f"source.{name} is not text")
    settings = content["settings"]
    count(settings["resize"], "settings.resize")
    require(count(settings["max_pixels"], "settings.max_pixels") > 0, "settings.max_pixels is 0")
    require(isinstance(content["created_by"], str), "created_by is not text")
    require(all(isinstance(label, str) for label in content["labels"]), "a label is not text")
    for counts in (content["reasons"], content.get("skipped", {})):
        for value in counts.values():
            count(value, "a count of files")
    for split, counts in content["splits"].items():
        require(split.isidentifier(), f"{brief(split)} is not a valid split name")
        require(
            count(counts["labelled"], "labelled") <= count(counts["samples"], "samples"), "more labels than samples"
        )
    shards = tuple(shard_of(**values) for values in content["shards"])
    require(len({shard.name for shard in shards}) == len(shards), "a shard is listed twice")
    left = {split: counts["samples"] for split, counts in content["splits"].items()}
    for shard in shards:
        left[shard.split] -= shard.samples
    require(not any(left.values()), "the shards' samples do not add up to the splits'")
    tables = tuple(table_of(**values) for values in content["tables"])
    return {**content, "labels": tuple(content["labels"]), "shards": shards, "tables": tables}


def shard_of(**values: Any) -> Shard:
    shard = Shard(**values)
    of_form(SHARD, shard.name, "valid shard name")
    require(shard.name.rpartition("-")[0] == shard.split, f"{shard.name} is of another split")
    of_form(SHA256, shard.sha256, f"sha256 of {shard.name}")
    of_form(SHA256, shard.offsets_sha256, f"sha256 of {shard.offsets_name}")
    require(isinstance(shard.file, str), f"{shard.name}: file is not text")
    require(bool(shard.file) == bool(shard.texts_sha256), f"{shard.name}: file and texts_sha256 belong together")
    if shard.file:
        of_form(SHA256, shard.texts_sha256, f"sha256 of {shard.texts_name}")
        checked_file(shard.file)
    for name in ("samples", "bytes", "labelled"):
        count(getattr(shard, name), f"{shard.name}: {name}")
    return shard


def checked_file(file: Any) -> None:
    """A tar's own place. It is only ever read, and where it is local, only from an index that is local as well."""
    require(isinstance(file, str) and file.endswith(".tar"), f"{brief(file)} is not the place of a tar")
    parts = file.split("://", 1)[1] if storage.is_remote(file) else file.removeprefix("/")
    below(parts, "a shard's file")


def table_of(name: Any, sha256: Any) -> dict[str, str]:
    of_form(TABLE, name, "valid table name")
    return {"name": name, "sha256": of_form(SHA256, sha256, f"sha256 of {name}")}


def count(value: Any, what: str) -> int:
    require(type(value) is int and 0 <= value < LARGEST_OFFSET, f"{what} must be a non-negative integer")
    return value
